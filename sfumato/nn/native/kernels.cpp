// Fused kernels for CPUs: float32, and int8 products of float32 pictures. For inference, on packed weights:
//
//   linear       matrix product, + bias + residual
//   geglu        matrix product, + bias, one half gated by the other
//   convolution  any kernel, stride and padding, + bias + shift + residual
//   winograd     the same for kernels of 3x3 with stride 1 and padding 1, by fewer multiplications
//   group_norm   group normalisation, + SiLU
//   linear_int8, geglu_int8, convolution_int8: the first three with weights and rows of 8 bits
//
// For training, each with its derivative:
//
//   winograd_convolution  by weights as they are, and the gradients of both
//   attention    softmax(q k^T) v, without the matrix of all queries and keys
//   gelu_tanh    GELU by its tanh formula
//   gated_gelu   one half gated by the other
//   modulated_norm  layer normalisation, whose scale and shift each picture has of its own
//   gated_sum    x + gate y, whose gate each picture has of its own
//
// Pictures are [B, C, H, W] in channels-last memory, so that the innermost loop always runs over channels. Weights are
// packed once into panels of kPanel output columns, [panel][depth][kPanel], which the matrix product reads front to back.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

using at::Tensor;
using Maybe = std::optional<Tensor>;

// ---------------------------------------------------------------------------------------------------- vectors

#if defined(__AVX512F__)
constexpr int kWidth = 16;  // floats in a register
constexpr int kRows = 12;   // rows of the micro-kernel: 24 accumulators of 32 registers
#else
constexpr int kWidth = 8;
constexpr int kRows = 6;    // 12 accumulators of 16 registers
#endif
constexpr int kPanel = 2 * kWidth;

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef int32_t IntVec __attribute__((vector_size(4 * kWidth)));
typedef float UnalignedVec __attribute__((vector_size(4 * kWidth), aligned(4)));

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
inline Vec splat(float value) { return value - Vec{}; }
typedef int32_t UnalignedIntVec __attribute__((vector_size(4 * kWidth), aligned(4)));
inline IntVec load(const int32_t* p) { return *reinterpret_cast<const UnalignedIntVec*>(p); }
inline void store(int32_t* p, IntVec v) { *reinterpret_cast<UnalignedIntVec*>(p) = v; }
inline IntVec splat(int32_t value) { return value - IntVec{}; }

// sum + a b: of floats, or in each lane of four unsigned bytes of a with four signed bytes of b.
inline Vec dot(Vec sum, Vec a, Vec b) { return sum + a * b; }
inline IntVec dot(IntVec sum, IntVec a, IntVec b) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<IntVec>(_mm512_dpbusd_epi32(
      reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#else
  for (int byte = 0; byte < 4; byte++) sum += ((a >> 8 * byte) & 255) * ((b << (24 - 8 * byte)) >> 24);
  return sum;
#endif
}

// The larger of the two; b where either is not a number.
inline Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
  return a > b ? a : b;
#endif
}

// 2^x to 2 ulp, for x <= 0: x = n + r with |r| <= 1/2, a polynomial of least relative error for 2^r, n added to the
// exponent's bits.
inline Vec exp2(Vec x) {
  x = larger(splat(-126.f), x);
  const Vec shifted = x + 12582912.f;  // 1.5 * 2^23: the low bits now hold round(x)
  const Vec r = x - (shifted - 12582912.f);
  Vec p = splat(1.327645836e-3f);
  p = p * r + 9.675541727e-3f;
  p = p * r + 5.550713320e-2f;
  p = p * r + 2.402211972e-1f;
  p = p * r + 6.931469670e-1f;
  p = p * r + 1.000000072f;
  const IntVec bits = reinterpret_cast<IntVec>(p) + (reinterpret_cast<IntVec>(shifted) << 23);
  return reinterpret_cast<Vec>(bits);
}

// e^x to 2 ulp: x = n ln 2 + r with |r| <= ln 2 / 2, a degree-6 polynomial for e^r, n added to the exponent's bits.
inline Vec exp(Vec x) {
  x = x > 88.f ? splat(88.f) : x;
  x = x < -87.f ? splat(-87.f) : x;
  const Vec shifted = x * 1.44269504f + 12582912.f;  // 1.5 * 2^23: the low bits now hold round(x / ln 2)
  const Vec n = shifted - 12582912.f;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = splat(1.f / 720);
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const IntVec bits = reinterpret_cast<IntVec>(p) + (reinterpret_cast<IntVec>(shifted) << 23);
  return reinterpret_cast<Vec>(bits);
}

inline Vec silu(Vec x) { return x / (1.f + exp(-x)); }

// Phi(x), the error function by Abramowitz and Stegun 7.1.26: |error| <= 1.5e-7; and e^(-x^2 / 2).
inline Vec normal(Vec x, Vec& bell) {
  const Vec z = (x < 0.f ? -x : x) * 0.70710678f;
  const Vec t = 1.f / (1.f + 0.3275911f * z);
  Vec p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  bell = exp(-z * z);
  const Vec tail = 0.5f * p * t * bell;  // 1 - Phi(|x|)
  return x < 0.f ? tail : 1.f - tail;
}

inline Vec gelu(Vec x) {
  Vec bell;
  return x * normal(x, bell);
}

// ----------------------------------------------------------------------------------------------------- threads

// Calls `each` with stretches of the tasks, which threads take one after the other as they come free: a core that is
// slower than others, or busy with something else, keeps nobody waiting.
template <class Each>
void share_out(int64_t tasks, Each each) {
  constexpr int64_t kTurns = 8;  // of each thread
  if (tasks < 1) return;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), tasks);
  const int64_t stretch = std::max<int64_t>(tasks / (threads * kTurns), 1);
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(stretch)) < tasks;) each(begin, std::min(begin + stretch, tasks));
  });
}

// ---------------------------------------------------------------------------------------------- matrix product

constexpr int64_t kDepth = 49152 / (4 * kPanel);  // of one pass: 48 KB of the weights; sums are stored after each

// What becomes of the sums of bytes in row r: scale[r * apart] times them, + offset[r * apart] start[W registers].
struct Steps {
  const float *scale, *offset;
  int64_t apart;
  const float* start;  // or null
};

// What becomes of sums of floats, of which `w` is the register in the row: they stay as they are.
struct Keep {
  Vec operator()(Vec sum, int) const { return sum; }
};

// c[R][W registers] (+)= a[R][depth] b[depth][W registers]; the rows of a are `stride` elements apart, its columns `step`.
// T is float, or int32_t that stands for four bytes, along the depth.
template <int R, int W, class T, class After>
void micro(const T* a, int64_t stride, int64_t step, const T* b, int64_t depth, float* c, bool add, const Steps& steps,
           After& last) {
  After after = last;  // in registers
  using Lanes = decltype(load(b));
  constexpr bool exact = std::is_same_v<T, float>;
  Lanes sum[R][W];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
    for (int w = 0; w < W; w++) {
      sum[r][w] = Lanes{};
      if constexpr (exact)
        if (add) sum[r][w] = load(c + (r * W + w) * kWidth);
    }
  for (const T* end = b + depth * W * kWidth; b != end; a += step, b += W * kWidth) {  // a counter would be a register more
    Lanes bw[W];
    for (int w = 0; w < W; w++) bw[w] = load(b + w * kWidth);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      const Lanes ar = splat(a[r * stride]);
      for (int w = 0; w < W; w++) sum[r][w] = dot(sum[r][w], ar, bw[w]);
    }
  }
  Vec start[W] = {};
  if constexpr (!exact)
    for (int w = 0; w < W && steps.start; w++) start[w] = load(steps.start + w * kWidth);
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
    for (int w = 0; w < W; w++) {
      float* to = c + (r * W + w) * kWidth;
      if constexpr (exact) {
        store(to, after(sum[r][w], w));
      } else {
        Vec v = __builtin_convertvector(sum[r][w], Vec) * steps.scale[r * steps.apart];
        v += start[w] * steps.offset[r * steps.apart];
        store(to, add ? load(to) + v : v);
      }
    }
  last = after;
}

template <int R, int W, class T, class After>
void micro(int64_t rows, const T* a, int64_t stride, int64_t step, const T* b, int64_t depth, float* c, bool add,
           const Steps& steps, After& after) {
  if (rows == R) return micro<R, W>(a, stride, step, b, depth, c, add, steps, after);
  if constexpr (R > 1) micro<R - 1, W>(rows, a, stride, step, b, depth, c, add, steps, after);
}

// c[rows][W registers] (+)= a[rows][depth] b[depth][W registers], in passes of like depth and groups of like height.
template <int W = 2, class T>
void multiply(const T* a, int64_t stride, int64_t rows, const T* b, int64_t depth, float* c, bool add = false,
              int64_t step = 1, const Steps& steps = {}) {
  constexpr int64_t width = W * kWidth;
  Keep keep;
  const int64_t passes = (depth + kDepth - 1) / kDepth, groups = (rows + kRows - 1) / kRows;
  for (int64_t p = 0; p < passes; p++) {
    const int64_t k = depth * p / passes, part = depth * (p + 1) / passes - k;
    for (int64_t g = 0; g < groups; g++) {
      const int64_t r = rows * g / groups, height = rows * (g + 1) / groups - r;
      const int64_t at = r * steps.apart;
      micro<kRows, W>(height, a + r * stride + k * step, stride, step, b + k * width, part, c + r * width, add || p > 0,
                      {steps.scale + at, steps.offset + at, steps.apart, p > 0 ? nullptr : steps.start}, keep);
    }
  }
}

int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// Memory for packed weights: zeros, in pages of 2 MB where the system has them, since a step reads each weight once and
// would otherwise miss the page table's cache at every 4 KB; never from the heap, which other layers have just left.
Tensor make_room(at::IntArrayRef shape, at::TensorOptions options) {
  constexpr uintptr_t kHuge = uintptr_t(2) << 20;
  const size_t bytes = c10::multiply_integers(shape) * options.dtype().itemsize();
  if (bytes < kHuge) return at::empty(shape, options).zero_();
  const size_t length = bytes + kHuge;
  void* place = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  TORCH_CHECK(place != MAP_FAILED, "no memory for ", bytes, " bytes of packed weights");
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(place) + kHuge - 1) / kHuge * kHuge;
  void* aligned = reinterpret_cast<void*>(begin);
  madvise(aligned, bytes / kHuge * kHuge, MADV_HUGEPAGE);  // whole pages only: the rest would be memory for nothing
  return at::from_blob(aligned, shape, [place, length](void*) { munmap(place, length); }, options);
}

const float* pointer(const Maybe& tensor) { return tensor ? tensor->const_data_ptr<float>() : nullptr; }

// [out, in] -> [panels, in, kPanel], the last panel filled up with zeros.
Tensor pack_linear(const Tensor& weight_) {
  const Tensor weight = weight_.contiguous();
  TORCH_CHECK(weight.dim() == 2, "pack_linear: weights must be [out, in]");
  const int64_t out = weight.size(0), in = weight.size(1), P = panels(out);
  Tensor packed = make_room({P, in, kPanel}, weight.options());
  const float* w = weight.const_data_ptr<float>();
  float* to = packed.mutable_data_ptr<float>();
  at::parallel_for(0, P, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++)
      for (int64_t k = 0; k < in; k++)
        for (int64_t j = 0; j < kPanel; j++) {
          const int64_t column = p * kPanel + j;
          to[(p * in + k) * kPanel + j] = column < out ? w[column * in + k] : 0.f;
        }
  });
  return packed;
}

constexpr int64_t kBlock = 8 * kRows;       // rows of one task
constexpr int64_t kStretch = 64;            // positions or tokens that are summed up in float32 before others join
constexpr int64_t kCache = int64_t(3) << 20;  // bytes a thread of what is prepared for one chunk of tasks

// Floats on the heap that are not cleared.
struct Room {
  std::unique_ptr<float[]> kept;
  float* at;
  explicit Room(int64_t count) : kept(new float[count]), at(kept.get()) {}
};

// What is added to the rows of a product, and where they go: y[row][column].
struct Output {
  float* y;
  int64_t columns;
  const float* bias;      // [columns], or null
  const float* shift;     // [row / area][columns], or null
  const float* residual;  // [row][columns], or null
  int64_t area;
};

// The first `count` values of a register, for the ragged end of a row.
inline void store_some(float* to, Vec v, int64_t count) {
  if (count >= kWidth) return store(to, v);
  for (int64_t i = 0; i < count; i++) to[i] = v[i];
}
inline Vec load_some(const float* from, int64_t count) {
  if (count >= kWidth) return load(from);
  Vec v{};
  for (int64_t i = 0; i < count; i++) v[i] = from[i];
  return v;
}

// Rows of floats; or of 8 bits, a row being several taps that have a scale s and a zero point z each. With x = s (q - z)
// there and weights w = t q' in a column, the sum of x w over a tap is s t (sum of q q' - z times the sum of q').
struct Exact {
  const float* rows;
  int64_t depth;
  Vec column_scale(int64_t) const { return splat(1.f); }
};
struct Scaled {
  const int32_t* rows;
  int64_t depth, taps;        // of one tap, and how many there are
  const float* scale;         // [row][tap]
  const float* offset;        // [row][tap], - s z
  const float* column_scales; // [column], in whole panels
  const float* column_sums;   // [panel][tap][kPanel]
  Vec column_scale(int64_t column) const { return load(column_scales + column); }
};

// to[count][kPanel] = rows from `first` on times panel p of the weights b, which its columns' scales are still to multiply.
void panel_product(const Exact& a, int64_t first, int64_t count, const float* b, int64_t p, float* to) {
  multiply(a.rows + first * a.depth, a.depth, count, b + p * a.depth * kPanel, a.depth, to);
}
void panel_product(const Scaled& a, int64_t first, int64_t count, const int32_t* b, int64_t p, float* to) {
  for (int64_t tap = 0; tap < a.taps; tap++) {
    const int64_t row = first * a.taps + tap, part = p * a.taps + tap;
    multiply(a.rows + row * a.depth, a.taps * a.depth, count, b + part * a.depth * kPanel, a.depth, to, tap > 0, 1,
             {a.scale + row, a.offset + row, a.taps, a.column_sums + part * kPanel});
  }
}

// Rows [start, start + count) of a b + bias + shift + residual, where `a` begins with row `start`.
template <class Rows, class T>
void product(const Rows& a, int64_t start, int64_t count, const T* b, const Output& out) {
  const int64_t blocks = (count + kBlock - 1) / kBlock, P = panels(out.columns);
  share_out(blocks * P, [&](int64_t begin, int64_t end) {
    const Room sums(kBlock * kPanel);
    for (int64_t task = begin; task < end; task++) {
      // Blocks are the outer loop: the second-level cache holds one while its panels of weights pass by.
      const int64_t first = task / P * kBlock, p = task % P, rows = std::min(kBlock, count - first);
      panel_product(a, first, rows, b, p, sums.at);
      for (int64_t j = 0; j < kPanel; j += kWidth) {
        const int64_t column = p * kPanel + j, valid = out.columns - column;
        if (valid <= 0) break;
        const Vec bias = out.bias ? load_some(out.bias + column, valid) : Vec{}, scale = a.column_scale(column);
        for (int64_t r = 0; r < rows; r++) {
          const int64_t row = start + first + r, at = row * out.columns + column;
          Vec v = load(sums.at + r * kPanel + j) * scale + bias;
          if (out.shift) v += load_some(out.shift + row / out.area * out.columns + column, valid);
          if (out.residual) v += load_some(out.residual + at, valid);
          store_some(out.y + at, v, valid);
        }
      }
    }
  });
}

void check_weights(const Tensor& packed, int64_t depth, int64_t columns) {
  TORCH_CHECK(packed.is_contiguous() && packed.size(0) == panels(columns) && packed.size(-2) == depth &&
                  packed.size(-1) == kPanel,
              "weights ", packed.sizes(), " were not packed for ", depth, " -> ", columns, " channels here");
}

// ------------------------------------------------------------------------------------------------------ linear

// x W^T + bias + residual on [..., in].
Tensor linear(const Tensor& x_, const Tensor& packed, const Maybe& bias, const Maybe& residual_, int64_t columns) {
  const Tensor x = x_.contiguous();
  const int64_t depth = x.size(-1);
  check_weights(packed, depth, columns);
  auto shape = x.sizes().vec();
  shape.back() = columns;
  Tensor y = at::empty(shape, x.options());
  Maybe residual;
  if (residual_) residual = residual_->expand(shape).contiguous();
  product(Exact{x.const_data_ptr<float>(), depth}, 0, x.numel() / depth, packed.const_data_ptr<float>(),
          {y.mutable_data_ptr<float>(), columns, pointer(bias), nullptr, pointer(residual), 1});
  return y;
}

// y = (x V^T + b) * gelu(x W^T + c) on rows a, where the weights are V over W.
template <class Rows, class T>
void gated(const Rows& a, int64_t count, const T* b, const float* bias, int64_t columns, float* y) {
  const int64_t blocks = (count + kBlock - 1) / kBlock, P = panels(columns);
  share_out(blocks * P, [&](int64_t begin, int64_t end) {
    const Room values(kBlock * kPanel), gates(kBlock * kPanel);
    for (int64_t task = begin; task < end; task++) {
      const int64_t first = task / P * kBlock, p = task % P, rows = std::min(kBlock, count - first);
      panel_product(a, first, rows, b, p, values.at);
      panel_product(a, first, rows, b, P + p, gates.at);
      for (int64_t j = 0; j < kPanel; j += kWidth) {
        const int64_t column = p * kPanel + j, gate = columns + column;
        const Vec scales[] = {a.column_scale(column), a.column_scale(gate)};
        const Vec biases[] = {bias ? load(bias + column) : Vec{}, bias ? load(bias + gate) : Vec{}};
        for (int64_t r = 0; r < rows; r++) {
          const Vec v = load(values.at + r * kPanel + j) * scales[0] + biases[0];
          const Vec g = load(gates.at + r * kPanel + j) * scales[1] + biases[1];
          store(y + (first + r) * columns + column, v * gelu(g));
        }
      }
    }
  });
}

// Shazeer, "GLU variants improve transformer" (2020): (x V^T + b) * gelu(x W^T + c), where the weights are V over W.
// Value and gate are made together, so that the wide intermediate never leaves the cache.
Tensor geglu(const Tensor& x_, const Tensor& packed, const Maybe& bias, int64_t columns) {
  const Tensor x = x_.contiguous();
  const int64_t depth = x.size(-1), count = x.numel() / depth;
  check_weights(packed, depth, 2 * columns);
  TORCH_CHECK(columns % kPanel == 0, "geglu: the width must be a multiple of ", kPanel);
  auto shape = x.sizes().vec();
  shape.back() = columns;
  Tensor y = at::empty(shape, x.options());
  gated(Exact{x.const_data_ptr<float>(), depth}, count, packed.const_data_ptr<float>(), pointer(bias), columns,
        y.mutable_data_ptr<float>());
  return y;
}

// ------------------------------------------------------------------------------------------- direct convolution

// [K, C, height, width] -> [panels, height * width * C, kPanel]: the depth runs over taps, then channels.
Tensor pack_convolution(const Tensor& weight) {
  TORCH_CHECK(weight.dim() == 4, "pack_convolution: weights must be [out, in, height, width]");
  return pack_linear(weight.permute({0, 2, 3, 1}).reshape({weight.size(0), -1}));
}

// Where the patches under a kernel lie.
struct Window {
  int64_t H, W, height, width, down, across, step, padding;
  // For each tap of patch r of all pictures: which position of all pictures it is, or -1 where it lies outside.
  template <class Visit>
  void taps(int64_t r, Visit visit) const {
    const int64_t n = r / (down * across), y0 = r / across % down * step - padding, x0 = r % across * step - padding;
    for (int64_t i = 0; i < height; i++)
      for (int64_t j = 0; j < width; j++) {
        const bool inside = y0 + i >= 0 && y0 + i < H && x0 + j >= 0 && x0 + j < W;
        visit(i * width + j, inside ? (n * H + y0 + i) * W + x0 + j : -1);
      }
  }
};

// What a convolution works on, of floats or of 8 bits: laid out, and told whether it fits.
struct Pictures {
  Tensor x, y;
  Maybe shift, residual;
  int64_t C, taps, rows;  // of one tap; in a patch; patches in all
  Window window;
  Output out;
  Pictures(const Tensor& x_, const Maybe& bias, const Maybe& shift_, const Maybe& residual_, int64_t columns,
           int64_t height, int64_t width, int64_t step, int64_t padding) {
    const auto layout = at::MemoryFormat::ChannelsLast;
    x = x_.contiguous(layout);
    const int64_t N = x.size(0), H = x.size(2), W = x.size(3);
    TORCH_CHECK(H + 2 * padding >= height && W + 2 * padding >= width, "convolution: a picture smaller than the kernel");
    const int64_t down = (H + 2 * padding - height) / step + 1, across = (W + 2 * padding - width) / step + 1;
    C = x.size(1), taps = height * width, rows = N * down * across;
    y = at::empty({N, columns, down, across}, x.options().memory_format(layout));
    if (residual_) residual = residual_->expand(y.sizes()).contiguous(layout);
    if (shift_) shift = shift_->expand({N, columns}).contiguous();
    window = {H, W, height, width, down, across, step, padding};
    out = {y.mutable_data_ptr<float>(), columns, pointer(bias), pointer(shift), pointer(residual), down * across};
  }
  // Whether the positions are the patches.
  bool plain() const { return taps == 1 && window.step == 1 && window.padding == 0; }
  // Patches that are laid out at a time, of so many bytes each.
  int64_t chunk(int64_t bytes) const {
    const int64_t fit = kCache * at::get_num_threads() / bytes;
    return std::min(rows, std::max(fit / kBlock, int64_t(1)) * kBlock);
  }
};

// conv(x) + bias + shift + residual, as a product of the patches under the kernel with the weights.
Tensor convolution(const Tensor& x, const Tensor& packed, const Maybe& bias, const Maybe& shift, const Maybe& residual,
                   int64_t columns, int64_t height, int64_t width, int64_t step, int64_t padding) {
  const Pictures all(x, bias, shift, residual, columns, height, width, step, padding);
  const int64_t C = all.C, depth = all.taps * C;
  check_weights(packed, depth, columns);
  const float *xp = all.x.const_data_ptr<float>(), *wp = packed.const_data_ptr<float>();
  if (all.plain()) {
    product(Exact{xp, depth}, 0, all.rows, wp, all.out);
    return all.y;
  }
  const int64_t chunk = all.chunk(4 * depth);
  Tensor buffer = at::empty({chunk, depth}, x.options());
  float* patches = buffer.mutable_data_ptr<float>();
  for (int64_t start = 0; start < all.rows; start += chunk) {
    const int64_t count = std::min(chunk, all.rows - start);
    share_out(count, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++)
        all.window.taps(start + r, [&](int64_t tap, int64_t from) {
          float* to = patches + r * depth + tap * C;
          from < 0 ? std::fill_n(to, C, 0.f) : std::copy_n(xp + from * C, C, to);
        });
    });
    product(Exact{patches, depth}, start, count, wp, all.out);
  }
  return all.y;
}

// -------------------------------------------------------------------------------------------------------- int8
//
// Weights have one scale a column; rows (tokens, positions of a picture) one scale and one zero point each, found when
// they are read. The sums of a tap are exact.

typedef uint8_t Bytes __attribute__((vector_size(kWidth), aligned(1)));

int64_t quads(int64_t depth) { return (depth + 3) / 4; }

// Rows of 8 bits, four of them to an int32.
struct Coarse {
  int64_t depth, stride;  // in floats; in int32
  Tensor kept;            // on the heap without being cleared
  int32_t* values;
  float *scales, *offsets;
  Coarse(const float* x, int64_t rows, int64_t depth) : depth(depth), stride(quads(depth)) {
    kept = at::empty({rows * (stride + 2)}, at::kInt);
    values = kept.mutable_data_ptr<int32_t>();
    scales = reinterpret_cast<float*>(values + rows * stride);
    offsets = scales + rows;
    at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) set(r, x + r * depth);
    });
  }

  // x = scale (q - zero), q from 0 to 255, and 0 stays 0.
  void set(int64_t row, const float* x) {
    Vec low{}, high{};
    int64_t k = 0;
    for (; k + kWidth <= depth; k += kWidth) {
      const Vec v = load(x + k);
      low = v < low ? v : low;
      high = v > high ? v : high;
    }
    float least = 0, most = 0;
    for (int j = 0; j < kWidth; j++) least = std::min(least, low[j]), most = std::max(most, high[j]);
    for (int64_t i = k; i < depth; i++) least = std::min(least, x[i]), most = std::max(most, x[i]);
    const float scale = std::max((most - least) / 255, 1e-30f), inverse = 1 / scale;
    const float zero = std::floor(-least * inverse + 0.5f), shifted = zero + 0.5f;
    scales[row] = scale;
    offsets[row] = -scale * zero;
    uint8_t* to = reinterpret_cast<uint8_t*>(values + row * stride);
    for (k = 0; k + kWidth <= depth; k += kWidth) {
      Vec v = load(x + k) * inverse + shifted;  // 0 or more: converting it rounds down
      v = v > 255.f ? splat(255.f) : v;
      *reinterpret_cast<Bytes*>(to + k) = __builtin_convertvector(__builtin_convertvector(v, IntVec), Bytes);
    }
    for (; k < depth; k++) to[k] = static_cast<uint8_t>(std::min(x[k] * inverse + shifted, 255.f));
    for (; k < 4 * stride; k++) to[k] = 0;
  }
};

// Weights of 8 bits as they are kept: [panels, taps * in / 4, kPanel, 4] read as int32, [columns] scales in whole panels,
// and [panels, taps, kPanel] sums over each tap.
struct Weights8 {
  const int32_t* packed;
  const float *scale, *sum;
  Weights8(const Tensor& packed_, const Tensor& scale_, const Tensor& sum_, int64_t depth, int64_t taps, int64_t wanted) {
    check_weights(packed_, taps * quads(depth), wanted);
    const int64_t columns = panels(wanted) * kPanel;
    TORCH_CHECK(scale_.numel() == columns && sum_.numel() == taps * columns, "int8: scales for other weights");
    packed = packed_.const_data_ptr<int32_t>();
    scale = scale_.const_data_ptr<float>(), sum = sum_.const_data_ptr<float>();
  }
  Scaled rows(const Coarse& a) const { return {a.values, a.stride, 1, a.scales, a.offsets, scale, sum}; }
};

// [out, in] or [out, in, height, width] -> packed weights, scales, sums; nothing of the size of the weights is made beside.
std::tuple<Tensor, Tensor, Tensor> pack_int8(const Tensor& weight_) {
  const Tensor weight = weight_.contiguous();
  TORCH_CHECK(weight.dim() == 2 || weight.dim() == 4, "pack_int8: weights must be [out, in] or [out, in, height, width]");
  const int64_t out = weight.size(0), in = weight.size(1), P = panels(out), Q = quads(in), columns = P * kPanel;
  const int64_t taps = weight.dim() == 4 ? weight.size(2) * weight.size(3) : 1;
  Tensor packed = make_room({P, taps * Q, kPanel}, weight.options().dtype(at::kInt));
  Tensor scale = make_room({columns}, weight.options()), sum = make_room({P, taps, kPanel}, weight.options());
  const float* w = weight.const_data_ptr<float>();
  int8_t* to = reinterpret_cast<int8_t*>(packed.mutable_data_ptr<int32_t>());
  float* scales = scale.mutable_data_ptr<float>();
  float* sums = sum.mutable_data_ptr<float>();
  at::parallel_for(0, P, 1, [&](int64_t begin, int64_t end) {
    for (int64_t column = begin * kPanel; column < std::min(end * kPanel, out); column++) {
      const float* from = w + column * in * taps;
      float most = 0;
      for (int64_t i = 0; i < in * taps; i++) most = std::max(most, std::abs(from[i]));
      const float step = std::max(most / 127, 1e-30f);
      scales[column] = step;
      for (int64_t tap = 0; tap < taps; tap++) {
        const int64_t row = column / kPanel * taps + tap;
        int8_t* panel = to + (row * Q * kPanel + column % kPanel) * 4;
        for (int64_t k = 0; k < in; k++) {
          const float q = std::nearbyint(from[k * taps + tap] / step);
          panel[k / 4 * kPanel * 4 + k % 4] = static_cast<int8_t>(q);
          sums[row * kPanel + column % kPanel] += q;  // exact below 2^24
        }
      }
    }
  });
  return {packed, scale, sum};
}

Tensor linear_int8(const Tensor& x_, const Tensor& packed, const Tensor& scale, const Tensor& sum, const Maybe& bias,
                   const Maybe& residual_, int64_t columns) {
  const Tensor x = x_.contiguous();
  const int64_t depth = x.size(-1), count = x.numel() / depth;
  const Weights8 weights(packed, scale, sum, depth, 1, columns);
  auto shape = x.sizes().vec();
  shape.back() = columns;
  Tensor y = at::empty(shape, x.options());
  Maybe residual;
  if (residual_) residual = residual_->expand(shape).contiguous();
  product(weights.rows(Coarse(x.const_data_ptr<float>(), count, depth)), 0, count, weights.packed,
          {y.mutable_data_ptr<float>(), columns, pointer(bias), nullptr, pointer(residual), 1});
  return y;
}

Tensor geglu_int8(const Tensor& x_, const Tensor& packed, const Tensor& scale, const Tensor& sum, const Maybe& bias,
                  int64_t columns) {
  const Tensor x = x_.contiguous();
  const int64_t depth = x.size(-1), count = x.numel() / depth;
  const Weights8 weights(packed, scale, sum, depth, 1, 2 * columns);
  TORCH_CHECK(columns % kPanel == 0, "geglu: the width must be a multiple of ", kPanel);
  auto shape = x.sizes().vec();
  shape.back() = columns;
  Tensor y = at::empty(shape, x.options());
  gated(weights.rows(Coarse(x.const_data_ptr<float>(), count, depth)), count, weights.packed, pointer(bias), columns,
        y.mutable_data_ptr<float>());
  return y;
}

Tensor convolution_int8(const Tensor& x, const Tensor& packed, const Tensor& scale, const Tensor& sum,
                        const Maybe& bias, const Maybe& shift, const Maybe& residual, int64_t columns, int64_t height,
                        int64_t width, int64_t step, int64_t padding) {
  const Pictures all(x, bias, shift, residual, columns, height, width, step, padding);
  const int64_t taps = all.taps, Q = quads(all.C);
  const Weights8 weights(packed, scale, sum, all.C, taps, columns);
  const Coarse positions(all.x.const_data_ptr<float>(), all.x.numel() / all.C, all.C);  // each once, not once a tap
  Scaled rows = weights.rows(positions);
  if (all.plain()) {
    product(rows, 0, all.rows, weights.packed, all.out);
    return all.y;
  }
  const int64_t chunk = all.chunk(4 * taps * (Q + 2));
  Tensor buffer = at::empty({chunk * taps * (Q + 2)}, x.options().dtype(at::kInt));
  int32_t* patches = buffer.mutable_data_ptr<int32_t>();
  float *scales = reinterpret_cast<float*>(patches + chunk * taps * Q), *offsets = scales + chunk * taps;
  rows.rows = patches, rows.offset = offsets, rows.scale = scales, rows.taps = taps;
  for (int64_t start = 0; start < all.rows; start += chunk) {
    const int64_t count = std::min(chunk, all.rows - start);
    share_out(count, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++)
        all.window.taps(start + r, [&](int64_t tap, int64_t from) {
          const int64_t at = r * taps + tap;
          offsets[at] = from < 0 ? 0.f : positions.offsets[from];
          scales[at] = from < 0 ? 0.f : positions.scales[from];
          from < 0 ? std::fill_n(patches + at * Q, Q, 0) : std::copy_n(positions.values + from * Q, Q, patches + at * Q);
        });
    });
    product(rows, start, count, weights.packed, all.out);
  }
  return all.y;
}

// ---------------------------------------------------------------------------------------------------- winograd
//
// Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016), F(4 x 4, 3 x 3): an output tile of 4 x 4 is
// A^T [(G g G^T) * (B^T d B)] A of a patch d of the input, 6 wide. The sum over channels turns the elementwise product
// into one independent matrix product [tiles, C] [C, K] for each of the 36 points of a patch: 36 multiplications for 16
// outputs where the direct sum has 144. Weights grow from 9 values to 36; where there is no memory for that they are
// transformed as they are used.

constexpr int kSide = 4, kPatch = kSide + 2, kPoints = kPatch * kPatch;

struct Transform {
  static constexpr double G[kPatch][3] = {{1. / 4, 0, 0},             {-1. / 6, -1. / 6, -1. / 6}, {-1. / 6, 1. / 6, -1. / 6},
                                          {1. / 24, 1. / 12, 1. / 6}, {1. / 24, -1. / 12, 1. / 6}, {0, 0, 1}};
  // One dimension of G g.
  static void weight(const Vec g[3], Vec o[6]) {
    const Vec near = (g[0] + g[2]) * (-1.f / 6), far = g[0] * (1.f / 24) + g[2] * (1.f / 6);
    o[0] = g[0] * 0.25f;
    o[1] = near - g[1] * (1.f / 6);
    o[2] = near + g[1] * (1.f / 6);
    o[3] = far + g[1] * (1.f / 12);
    o[4] = far - g[1] * (1.f / 12);
    o[5] = g[2];
  }
  // One dimension of B^T d.
  static void input(const Vec d[6], Vec o[6]) {
    const Vec even = d[4] - 4.f * d[2], odd = d[3] - 4.f * d[1];
    const Vec near = d[4] - d[2], far = 2.f * (d[3] - d[1]);
    o[0] = 4.f * d[0] - 5.f * d[2] + d[4];
    o[1] = even + odd;
    o[2] = even - odd;
    o[3] = near + far;
    o[4] = near - far;
    o[5] = 4.f * d[1] - 5.f * d[3] + d[5];
  }
  // One dimension of A^T m.
  static void output(const Vec m[6], Vec o[4]) {
    const Vec s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
    o[0] = m[0] + s1 + s2;
    o[1] = d1 + 2.f * d2;
    o[2] = s1 + 4.f * s2;
    o[3] = d1 + 8.f * d2 + m[5];
  }
  // One dimension of A o.
  static void spread(const Vec o[4], Vec m[6]) {
    const Vec even = o[0] + o[2], odd = o[1] + o[3], far_even = o[0] + 4.f * o[2], far_odd = 2.f * o[1] + 8.f * o[3];
    m[0] = o[0];
    m[1] = even + odd;
    m[2] = even - odd;
    m[3] = far_even + far_odd;
    m[4] = far_even - far_odd;
    m[5] = o[3];
  }
};

// Kernels of 3 x 3 from C to K channels, in any memory order.
struct Kernels {
  float* w;
  int64_t K, C, of_k, of_c, of_y, of_x;
  explicit Kernels(const Tensor& weight)
      : w(const_cast<float*>(weight.const_data_ptr<float>())), K(weight.size(0)), C(weight.size(1)), of_k(weight.stride(0)),
        of_c(weight.stride(1)), of_y(weight.stride(2)), of_x(weight.stride(3)) {}
  float* at(int64_t k, int64_t c, int64_t y, int64_t x) const { return w + k * of_k + c * of_c + y * of_y + x * of_x; }
  // Those that take the gradient back: from K to C channels, upside down.
  Kernels turned() const {
    Kernels t = *this;
    std::swap(t.K, t.C), std::swap(t.of_k, t.of_c);
    t.w += 2 * (of_y + of_x), t.of_y = -of_y, t.of_x = -of_x;
    return t;
  }
};

// G g G^T of a register of kernels: rows of points from `first` to before `last`, each point `apart` from the next.
inline void transform_kernel(const Vec g[3][3], int64_t first, int64_t last, float* to, int64_t apart) {
  Vec half[3][kPatch], row[kPatch];
  for (int x = 0; x < 3; x++) {
    const Vec column[] = {g[0][x], g[1][x], g[2][x]};
    Transform::weight(column, half[x]);
  }
  for (int64_t i = first; i < last; i++) {
    const Vec across[] = {half[0][i], half[1][i], half[2][i]};
    Transform::weight(across, row);
    for (int j = 0; j < kPatch; j++, to += apart) store(to, row[j]);
  }
}

// -> [panels, kPoints, C, kPanel], the last panel filled up with zeros.
void transform_weight(const Kernels& weight, Tensor& packed) {
  const int64_t K = weight.K, C = weight.C, P = panels(K);
  float* to = packed.mutable_data_ptr<float>();
  at::parallel_for(0, P * C, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t p = i / C, c = i % C;
      for (int64_t k = p * kPanel; k < (p + 1) * kPanel; k += kWidth) {
        const int64_t lanes = std::clamp<int64_t>(K - k, 0, kWidth);
        Vec g[3][3] = {};
        for (int y = 0; y < 3; y++)
          for (int x = 0; x < 3; x++) {
            const float* from = weight.at(k, c, y, x);
            if (weight.of_k == 1) g[y][x] = load_some(from, lanes);
            else for (int64_t j = 0; j < lanes; j++) g[y][x][j] = from[j * weight.of_k];
          }
        transform_kernel(g, 0, kPatch, to + (p * kPoints * C + c) * kPanel + k % kPanel, C * kPanel);
      }
    }
  });
}

Tensor pack_winograd(const Tensor& weight) {
  TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3, "winograd: weights must be 3x3");
  const Kernels kernels(weight);
  Tensor packed = make_room({panels(kernels.K), kPoints, kernels.C, kPanel}, weight.options());
  transform_weight(kernels, packed);
  return packed;
}

// Where the tiles of a batch of pictures lie.
struct Tiling {
  int64_t H, W, down, across, tiles;
  explicit Tiling(const Tensor& x)
      : H(x.size(2)), W(x.size(3)), down((H + kSide - 1) / kSide), across((W + kSide - 1) / kSide),
        tiles(x.size(0) * down * across) {}
  // Picture, and first row and column of output tile t.
  void find(int64_t t, int64_t& n, int64_t& y, int64_t& x) const {
    n = t / (down * across);
    y = t / across % down * kSide;
    x = t % across * kSide;
  }
};

// B^T d B of one tile and all channels; point i goes to `to + i * stride`.
void gather_tile(const float* picture, const Tiling& tiling, int64_t y0, int64_t x0, int64_t C, float* to,
                 int64_t stride) {
  for (int64_t c = 0; c < C; c += kWidth) {
    Vec rows[kPatch][kPatch];
    for (int i = 0; i < kPatch; i++) {
      const int64_t y = y0 + i - 1;
      Vec d[kPatch];
      for (int j = 0; j < kPatch; j++) {
        const int64_t x = x0 + j - 1;
        const bool inside = y >= 0 && y < tiling.H && x >= 0 && x < tiling.W;
        d[j] = inside ? load(picture + (y * tiling.W + x) * C + c) : Vec{};
      }
      Transform::input(d, rows[i]);
    }
    for (int j = 0; j < kPatch; j++) {
      Vec column[kPatch], o[kPatch];
      for (int i = 0; i < kPatch; i++) column[i] = rows[i][j];
      Transform::input(column, o);
      for (int i = 0; i < kPatch; i++) store(to + (i * kPatch + j) * stride + c, o[i]);
    }
  }
}

// A^T m A of one tile and one register of channels, `valid` of them, + bias + residual; point i is at `m + i * stride`.
void scatter_tile(const float* m, int64_t stride, const Tiling& tiling, int64_t y0, int64_t x0, Vec bias,
                  const float* residual, float* picture, int64_t K, int64_t valid) {
  Vec rows[kSide][kPatch];
  for (int j = 0; j < kPatch; j++) {
    Vec column[kPatch], o[kSide];
    for (int i = 0; i < kPatch; i++) column[i] = load(m + (i * kPatch + j) * stride);
    Transform::output(column, o);
    for (int i = 0; i < kSide; i++) rows[i][j] = o[i];
  }
  for (int i = 0; i < kSide && y0 + i < tiling.H; i++) {
    Vec o[kSide];
    Transform::output(rows[i], o);
    for (int j = 0; j < kSide && x0 + j < tiling.W; j++) {
      const int64_t at = ((y0 + i) * tiling.W + x0 + j) * K;
      Vec v = o[j] + bias;
      if (residual) v += load_some(residual + at, valid);
      store_some(picture + at, v, valid);
    }
  }
}

// G g G^T of `count` channels of one panel of plain weights [9][C][kPanel], rows of points from `first` to before `last`.
void transform_panel(const float* w, int64_t C, int64_t count, int64_t first, int64_t last, float* to, int64_t apart) {
  for (int64_t i = 0; i < count * kPanel; i += kWidth) {
    Vec g[3][3];
    for (int tap = 0; tap < 9; tap++) {
      const float* from = w + tap * C * kPanel + i;
      __builtin_prefetch(from + 12 * kPanel);  // nine streams are more than the processor foresees
      g[tap / 3][tap % 3] = load(from);
    }
    transform_kernel(g, first, last, to + i, apart);
  }
}

// x is [N, C, H, W] in channels-last memory, y the same with K channels. Weights are transformed, or [panels, 9, C, kPanel].
void convolve(const Tensor& x, const float* weights, bool transformed, const float* bias, const float* shift,
              const float* residual, Tensor& y) {
  const int64_t N = x.size(0), C = x.size(1), K = y.size(1), P = panels(K), threads = at::get_num_threads();
  const Tiling tiling(x);
  const int64_t area = tiling.H * tiling.W;
  const float* xp = x.const_data_ptr<float>();
  float* yp = y.mutable_data_ptr<float>();

  // Tiles are worked off in chunks whose transforms stay in the last-level cache; all threads share a chunk.
  const int64_t fit = kCache * threads / (kPoints * (C + P * kPanel) * 4);
  const int64_t most = std::clamp(fit / kRows, int64_t(transformed ? 12 : 4), int64_t(1024)) * kRows;
  const int64_t chunks = std::max<int64_t>((tiling.tiles + most - 1) / most, 1), chunk = (tiling.tiles + chunks - 1) / chunks;
  const int64_t stride = chunk * C + kWidth, plane = chunk * P * kPanel + kWidth;  // kWidth keeps points out of one cache set
  Tensor buffer = at::empty({kPoints * (stride + plane)}, x.options());
  float *patches = buffer.mutable_data_ptr<float>(), *products = patches + kPoints * stride;
  // Of weights that are transformed here a task takes so many rows of points and channels as the second-level cache holds.
  int64_t parts = 1;
  while (parts < kPatch && P * parts < 4 * threads) parts++;
  const int64_t deep = std::min(C, 96 * parts), apart = deep * kPanel + kWidth;

  for (int64_t start = 0; start < tiling.tiles; start += chunk) {
    const int64_t count = std::min(chunk, tiling.tiles - start), blocks = (count + kBlock - 1) / kBlock;
    share_out(count, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        int64_t n, y0, x0;
        tiling.find(start + t, n, y0, x0);
        gather_tile(xp + n * area * C, tiling, y0, x0, C, patches + t * C, stride);
      }
    });
    // Points are the outer loop: the second-level cache holds one point's patches while its panels of weights pass by.
    if (transformed)
      share_out(kPoints * blocks * P, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; task++) {
          const int64_t i = task / P / blocks, first = task / P % blocks * kBlock, p = task % P;
          multiply(patches + i * stride + first * C, C, std::min(kBlock, count - first),
                   weights + (p * kPoints + i) * C * kPanel, C, products + i * plane + (p * count + first) * kPanel);
        }
      });
    else
      share_out(P * parts, [&](int64_t begin, int64_t end) {
        const Room room((kPatch + parts - 1) / parts * kPatch * apart);
        for (int64_t task = begin; task < end; task++) {
          const int64_t p = task / parts, first = task % parts * kPatch / parts, last = (task % parts + 1) * kPatch / parts;
          for (int64_t c = 0; c < C; c += deep) {
            const int64_t some = std::min(deep, C - c);
            transform_panel(weights + (p * 9 * C + c) * kPanel, C, some, first, last, room.at, apart);
            for (int64_t i = first * kPatch; i < last * kPatch; i++)
              multiply(patches + i * stride + c, C, count, room.at + (i - first * kPatch) * apart, some,
                       products + i * plane + p * count * kPanel, c > 0);
          }
        }
      });
    share_out(P * count, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; task++) {
        const int64_t p = task / count, t = task % count;
        int64_t n, y0, x0;
        tiling.find(start + t, n, y0, x0);
        for (int64_t k = p * kPanel; k < std::min(K, (p + 1) * kPanel); k += kWidth) {
          Vec b = bias ? load_some(bias + k, K - k) : Vec{};
          if (shift) b += load_some(shift + n * K + k, K - k);
          const int64_t offset = n * area * K + k;
          scatter_tile(products + task * kPanel + (k - p * kPanel), plane, tiling, y0, x0, b,
                       residual ? residual + offset : nullptr, yp + offset, K, K - k);
        }
      }
    });
  }
}

// conv(x) + bias + shift + residual, by weights of `pack_winograd`, or of `pack_convolution`.
Tensor winograd(const Tensor& x_, const Tensor& packed, const Maybe& bias, const Maybe& shift_, const Maybe& residual_,
                int64_t columns) {
  const auto layout = at::MemoryFormat::ChannelsLast;
  const Tensor x = x_.contiguous(layout);
  const int64_t N = x.size(0), C = x.size(1);
  const bool transformed = packed.dim() == 4;
  check_weights(packed, transformed ? C : 9 * C, columns);
  TORCH_CHECK(C % kWidth == 0, "winograd: the input's channels must be a multiple of ", kWidth);
  Tensor y = at::empty({N, columns, x.size(2), x.size(3)}, x.options().memory_format(layout));
  Maybe residual, shift;
  if (residual_) residual = residual_->expand(y.sizes()).contiguous(layout);
  if (shift_) shift = shift_->expand({N, columns}).contiguous();
  convolve(x, packed.const_data_ptr<float>(), transformed, pointer(bias), pointer(shift), pointer(residual), y);
  return y;
}

// conv(x) + bias with weights that change in every step; or, turned, the gradient of x from that of the result.
Tensor winograd_convolution(const Tensor& x, const Tensor& weight, const Maybe& bias, bool turned) {
  const Kernels kernels = turned ? Kernels(weight).turned() : Kernels(weight);
  Tensor packed = at::empty({panels(kernels.K), kPoints, kernels.C, kPanel}, weight.options());
  transform_weight(kernels, packed);
  return winograd(x, packed, bias, {}, {}, kernels.K);
}

// The gradient of 3 x 3 weights from that of the result, g: G^T [(A g A^T) * (B^T d B)] G, summed over the tiles, which
// is the transpose of the above. `like` are the weights.
Tensor winograd_weight(const Tensor& g_, const Tensor& x_, const Tensor& like) {
  constexpr auto& G = Transform::G;
  const auto layout = at::MemoryFormat::ChannelsLast;
  const Tensor x = x_.contiguous(layout), g = g_.contiguous(layout);
  Tensor gradient = at::empty_like(like);
  const Kernels kernels(gradient);
  const int64_t K = kernels.K, C = kernels.C, P = panels(K);
  TORCH_CHECK(C % kWidth == 0, "winograd: the input's channels must be a multiple of ", kWidth);
  const Tiling tiling(x);
  const int64_t tiles = tiling.tiles, area = tiling.H * tiling.W;
  const float *xp = x.const_data_ptr<float>(), *gp = g.const_data_ptr<float>();

  // Chunks are the same for any number of threads, and so are the sums.
  const int64_t chunk = std::min(tiles, std::clamp<int64_t>(kCache / (kPoints * (C + P * kPanel) * 4), 48, 1024));
  const int64_t stride = chunk * C + kWidth, width = chunk * kPanel + kWidth;
  Tensor buffer = at::empty({kPoints * (stride + P * width + P * C * kPanel)}, x.options());
  float *patches = buffer.mutable_data_ptr<float>(), *spread = patches + kPoints * stride;
  float* sums = spread + kPoints * P * width;
  for (int64_t start = 0; start < tiles; start += chunk) {
    const int64_t count = std::min(chunk, tiles - start);
    share_out(count, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        int64_t n, y0, x0;
        tiling.find(start + t, n, y0, x0);
        gather_tile(xp + n * area * C, tiling, y0, x0, C, patches + t * C, stride);
        for (int64_t k = 0; k < P * kPanel; k += kWidth) {
          Vec half[kSide][kPatch];
          for (int i = 0; i < kSide; i++) {
            Vec o[kSide];
            for (int j = 0; j < kSide; j++) {
              const bool inside = y0 + i < tiling.H && x0 + j < tiling.W && k < K;
              o[j] = inside ? load_some(gp + (n * area + (y0 + i) * tiling.W + x0 + j) * K + k, K - k) : Vec{};
            }
            Transform::spread(o, half[i]);
          }
          for (int j = 0; j < kPatch; j++) {
            Vec o[kSide], m[kPatch];
            for (int i = 0; i < kSide; i++) o[i] = half[i][j];
            Transform::spread(o, m);
            for (int i = 0; i < kPatch; i++)
              store(spread + ((i * kPatch + j) * P + k / kPanel) * width + t * kPanel + k % kPanel, m[i]);
          }
        }
      }
    });
    at::parallel_for(0, kPoints * P, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; task++)
        multiply(patches + task / P * stride, 1, C, spread + task * width, count, sums + task * C * kPanel, start > 0, C);
    });
  }

  at::parallel_for(0, P * C, 16, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t p = task / C, c = task % C;
      for (int64_t k = p * kPanel; k < std::min(K, (p + 1) * kPanel); k += kWidth) {
        Vec half[3][kPatch] = {};
        for (int i = 0; i < kPatch; i++)
          for (int j = 0; j < kPatch; j++) {
            const Vec u = load(sums + (((i * kPatch + j) * P + p) * C + c) * kPanel + k % kPanel);
            for (int y = 0; y < 3; y++) half[y][j] += float(G[i][y]) * u;
          }
        for (int y = 0; y < 3; y++)
          for (int x = 0; x < 3; x++) {
            Vec sum{};
            for (int j = 0; j < kPatch; j++) sum += float(G[j][x]) * half[y][j];
            float* to = kernels.at(k, c, y, x);
            for (int64_t j = 0; j < std::min<int64_t>(kWidth, K - k); j++) to[j * kernels.of_k] = sum[j];
          }
      }
    }
  });
  return gradient;
}

// -------------------------------------------------------------------------------------------------- group norm

// Wu and He, "Group normalization" (2018), on [B, C, H, W]; biased variance, as PyTorch has it.
Tensor group_norm(const Tensor& x_, int64_t groups, const Tensor& weight, const Tensor& bias, double eps, bool with_silu) {
  const auto layout = at::MemoryFormat::ChannelsLast;
  const Tensor x = x_.contiguous(layout);
  const int64_t N = x.size(0), C = x.size(1), area = x.size(2) * x.size(3), D = C / groups;
  TORCH_CHECK(C % groups == 0, "group_norm: ", C, " channels in ", groups, " groups");
  Tensor y = at::empty_like(x);
  const float *xp = x.const_data_ptr<float>(), *wp = weight.const_data_ptr<float>(), *bp = bias.const_data_ptr<float>();
  float* yp = y.mutable_data_ptr<float>();

  // Sums over stretches of kStretch positions in float32, over stretches in double.
  const int64_t stretches = (area + kStretch - 1) / kStretch;
  std::vector<double> sums(N * stretches * groups * 2);
  at::parallel_for(0, N * stretches, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(C), square(C);
    for (int64_t i = begin; i < end; i++) {
      const int64_t n = i / stretches, first = i % stretches * kStretch, last = std::min(first + kStretch, area);
      std::fill(sum.begin(), sum.end(), 0.f);
      std::fill(square.begin(), square.end(), 0.f);
      for (int64_t at = first; at < last; at++) {
        const float* p = xp + (n * area + at) * C;
        for (int64_t c = 0; c < C; c++) sum[c] += p[c], square[c] += p[c] * p[c];
      }
      for (int64_t g = 0; g < groups; g++) {
        double s = 0, q = 0;
        for (int64_t c = g * D; c < (g + 1) * D; c++) s += sum[c], q += square[c];
        sums[(i * groups + g) * 2] = s;
        sums[(i * groups + g) * 2 + 1] = q;
      }
    }
  });

  std::vector<float> scale(N * C), offset(N * C);
  for (int64_t n = 0; n < N; n++)
    for (int64_t g = 0; g < groups; g++) {
      double s = 0, q = 0;
      for (int64_t i = n * stretches; i < (n + 1) * stretches; i++)
        s += sums[(i * groups + g) * 2], q += sums[(i * groups + g) * 2 + 1];
      const double count = static_cast<double>(area * D), mean = s / count;
      const double inverse = 1 / std::sqrt(std::max(q / count - mean * mean, 0.) + eps);
      for (int64_t c = g * D; c < (g + 1) * D; c++) {
        scale[n * C + c] = static_cast<float>(wp[c] * inverse);
        offset[n * C + c] = static_cast<float>(bp[c] - mean * inverse * wp[c]);
      }
    }

  at::parallel_for(0, N * area, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const float *p = xp + i * C, *s = scale.data() + i / area * C, *o = offset.data() + i / area * C;
      float* q = yp + i * C;
      int64_t c = 0;
      for (; c + kWidth <= C; c += kWidth) {
        const Vec v = load(p + c) * load(s + c) + load(o + c);
        store(q + c, with_silu ? silu(v) : v);
      }
      for (; c < C; c++) {
        const float v = p[c] * s[c] + o[c];
        q[c] = with_silu ? v / (1 + std::exp(-v)) : v;
      }
    }
  });
  return y;
}

// --------------------------------------------------------------------------------------------------- attention
//
// Dao et al., "FlashAttention" (2022): tiles of queries by keys, that stay in the cache. What is a whole panel wide is
// never the channels of a head, which may be few: queries on the way in, keys on the way back.

// [B, heads, N, d], whose channels lie side by side: one head's tokens are `token` elements apart.
struct Heads {
  Tensor kept;
  float* data;
  int64_t batch, head, token;
  explicit Heads(const Tensor& x) : kept(x.stride(-1) == 1 ? x : x.contiguous()) {
    data = const_cast<float*>(kept.const_data_ptr<float>());
    batch = kept.stride(0), head = kept.stride(1), token = kept.stride(2);
  }
  float* of(int64_t b, int64_t h) const { return data + b * batch + h * head; }
  // The like of x as [B, N, heads, d] in memory, so that joining the heads is a view.
  static Heads like(const Tensor& x) {
    return Heads(at::empty({x.size(0), x.size(2), x.size(1), x.size(3)}, x.options()).transpose(1, 2));
  }
};

// Turns `count` rows of d, `stride` apart, into to[d][kPanel], times a factor, the rest filled up with zeros; and back.
void turn(const float* from, int64_t stride, int64_t count, int64_t d, float factor, float* to) {
  std::fill_n(to, d * kPanel, 0.f);
  for (int64_t j = 0; j < count; j++)
    for (int64_t e = 0; e < d; e++) to[e * kPanel + j] = factor * from[j * stride + e];
}
void turn_back(const float* from, int64_t stride, int64_t count, int64_t d, float factor, float* to) {
  for (int64_t j = 0; j < count; j++)
    for (int64_t e = 0; e < d; e++) to[j * stride + e] = factor * from[e * kPanel + j];
}

constexpr int64_t kTile = 8 * 12;  // rows of a tile
constexpr int64_t kTogether = 8;   // panels of queries that go through the keys together, so that these are read less often

// Makes scores of 32 queries, to the base of 2, into weights: 2^(score - most). That is a score of each that need not be the
// greatest: a factor that all of its weights have in common does not matter until numbers become too great.
struct Weights {
  Vec most[2], above[2], total[2];  // and how far a score was above it, and the sum of weights
  void refer(const float* scores, int64_t rows) {
    for (int w = 0; w < 2; w++) {
      most[w] = splat(-1e30f), above[w] = total[w] = Vec{};  // no infinity, from which there is no way up
      for (int64_t r = 0; r < rows; r++) most[w] = larger(load(scores + r * kPanel + w * kWidth), most[w]);
    }
  }
  Vec operator()(Vec score, int w) {
    const Vec x = score - most[w], weight = exp2(x);
    above[w] = larger(x, above[w]);
    total[w] += weight;
    return weight;
  }
  bool too_great() const {
    const Vec top = larger(above[0], above[1]);
    bool found = false;
    for (int j = 0; j < kWidth; j++) found |= top[j] > 30;
    return found;
  }
  // Takes a greater score instead, with sums so far [depth][kPanel].
  void rise(const Weights& found, float* sum, int64_t depth) {
    for (int w = 0; w < 2; w++) {
      const Vec factor = exp2(-found.above[w]);
      most[w] += found.above[w], total[w] *= factor, above[w] = Vec{};
      for (int64_t e = 0; e < depth; e++) {
        float* at = sum + e * kPanel + w * kWidth;
        store(at, factor * load(at));
      }
    }
  }
  float logarithm(int64_t j) const { return most[j / kWidth][j % kWidth] * M_LN2 + std::log(total[j / kWidth][j % kWidth]); }
};

// softmax(q k^T scale) v, and of each query the logarithm of its sum of exponentials, [B, heads, N].
std::tuple<Tensor, Tensor> attention(const Tensor& q_, const Tensor& k_, const Tensor& v_, double scale) {
  const Heads q(q_), k(k_), v(v_), y = Heads::like(q_);
  const int64_t B = q_.size(0), heads = q_.size(1), N = q_.size(2), L = k_.size(2), d = q_.size(3);
  const int64_t each = B * heads * panels(N) / (4 * at::get_num_threads());  // of few queries every thread gets some
  const int64_t together = std::clamp<int64_t>(each, 1, kTogether), P = (panels(N) + together - 1) / together;
  TORCH_CHECK(k_.sizes() == v_.sizes() && k_.size(0) == B && k_.size(1) == heads && k_.size(3) == d && L > 0,
              "attention: queries ", q_.sizes(), ", keys ", k_.sizes(), ", values ", v_.sizes());
  Tensor logs = at::empty({B, heads, N}, q_.options());
  float* lp = logs.mutable_data_ptr<float>();
  struct Panel {  // 32 queries: turned, the sum of values so far, and what their weights are
    float *queries, *sum;
    Weights weights;
  };
  share_out(B * heads * P, [&](int64_t begin, int64_t end) {
    std::vector<float> room((kTile + kTogether * 2 * d) * kPanel);
    float* scores = room.data();
    Panel panel[kTogether];
    for (int64_t g = 0; g < kTogether; g++) {
      panel[g].queries = scores + (kTile + g * 2 * d) * kPanel;
      panel[g].sum = panel[g].queries + d * kPanel;
    }
    for (int64_t task = begin; task < end; task++) {
      const int64_t b = task / P / heads, h = task / P % heads, first = task % P * together * kPanel;
      const int64_t some = std::min(together, panels(N - first));
      const float *keys = k.of(b, h), *values = v.of(b, h);
      for (int64_t g = 0; g < some; g++) {
        const int64_t i = first + g * kPanel;
        turn(q.of(b, h) + i * q.token, q.token, std::min<int64_t>(kPanel, N - i), d, static_cast<float>(scale * M_LOG2E),
             panel[g].queries);
        multiply(keys, k.token, std::min<int64_t>(4, L), panel[g].queries, d, scores);
        panel[g].weights.refer(scores, std::min<int64_t>(4, L));
      }
      for (int64_t start = 0; start < L; start += kTile) {
        const int64_t rows = std::min(kTile, L - start), groups = (rows + kRows - 1) / kRows;
        for (int64_t g = 0; g < some; g++) {
          auto& [queries, sum, weights] = panel[g];
          const auto weigh = [&, queries = queries](Weights& found) {
            for (int64_t i = 0; i < groups; i++) {
              const int64_t r = rows * i / groups, height = rows * (i + 1) / groups - r;
              const float* from = keys + (start + r) * k.token;
              micro<kRows, 2>(height, from, k.token, 1, queries, d, scores + r * kPanel, false, {}, found);
            }
          };
          Weights found = weights;
          weigh(found);
          while (found.too_great()) {  // seldom
            weights.rise(found, sum, start > 0 ? d : 0);
            weigh(found = weights);
          }
          weights = found;
          multiply(values + start * v.token, 1, d, scores, rows, sum, start > 0, v.token);
        }
      }
      for (int64_t g = 0; g < some; g++) {
        const int64_t i = first + g * kPanel, count = std::min<int64_t>(kPanel, N - i);
        const auto& [queries, sum, weights] = panel[g];
        for (int w = 0; w < 2; w++)
          for (int64_t e = 0; e < d; e++) {
            float* at = sum + e * kPanel + w * kWidth;
            store(at, load(at) / weights.total[w]);
          }
        turn_back(sum, y.token, count, d, 1, y.of(b, h) + i * y.token);
        for (int64_t j = 0; j < count; j++)
          lp[(b * heads + h) * N + i + j] = weights.logarithm(j);
      }
    }
  });
  return {y.kept, logs};
}

// Where the gradients of one head go: dq[N][d] += s[rows][kPanel] k[kPanel][d], in panels of W registers of d.
template <int W>
struct Queries {
  static constexpr int64_t kLanes = W * kWidth;
  int64_t N, d, P;
  std::vector<float> sums, keys;
  Queries(int64_t N, int64_t d)
      : N(N), d(d), P((d + kLanes - 1) / kLanes), sums(P * N * kLanes), keys(P * kPanel * kLanes) {}
  void take(const float* k, int64_t stride, int64_t count) {
    std::fill(keys.begin(), keys.end(), 0.f);
    for (int64_t j = 0; j < count; j++)
      for (int64_t e = 0; e < d; e++) keys[(e / kLanes * kPanel + j) * kLanes + e % kLanes] = k[j * stride + e];
  }
  void add(const float* s, int64_t start, int64_t rows, bool more) {
    for (int64_t p = 0; p < P; p++)
      multiply<W>(s, kPanel, rows, keys.data() + p * kPanel * kLanes, kPanel, sums.data() + (p * N + start) * kLanes, more);
  }
  void give(float* to, int64_t stride, float factor) const {
    for (int64_t i = 0; i < N; i++)
      for (int64_t e = 0; e < d; e++) to[i * stride + e] = factor * sums[(e / kLanes * N + i) * kLanes + e % kLanes];
  }
};

// The gradients of one head, from g, that of its output y.
template <int W>
void attend_back(const float* g, const Heads& gs, const float* q, const Heads& qs, const float* k, const Heads& ks,
                 const float* v, const Heads& vs, const float* y, const Heads& ys, const float* logs, int64_t N, int64_t L,
                 int64_t d, float scale, float* dq, const Heads& dqs, float* dk, const Heads& dks, float* dv,
                 const Heads& dvs) {
  Queries<W> queries(N, d);
  std::vector<float> room((2 * kTile + 4 * d) * kPanel), means(N);
  float *p = room.data(), *s = p + kTile * kPanel, *keys = s + kTile * kPanel, *values = keys + d * kPanel;
  float *key_sums = values + d * kPanel, *value_sums = key_sums + d * kPanel;
  for (int64_t i = 0; i < N; i++)  // of the gradients of a query's weights: sum_j p_ij dp_ij = g_i . y_i
    for (int64_t e = 0; e < d; e++) means[i] += g[i * gs.token + e] * y[i * ys.token + e];
  for (int64_t j = 0; j < L; j += kPanel) {
    const int64_t count = std::min<int64_t>(kPanel, L - j);
    turn(k + j * ks.token, ks.token, count, d, scale, keys);
    turn(v + j * vs.token, vs.token, count, d, 1, values);
    queries.take(k + j * ks.token, ks.token, count);
    for (int64_t start = 0; start < N; start += kTile) {
      const int64_t rows = std::min(kTile, N - start);
      const float *qi = q + start * qs.token, *gi = g + start * gs.token;
      multiply(qi, qs.token, rows, keys, d, p);
      multiply(gi, gs.token, rows, values, d, s);
      for (int64_t r = 0; r < rows; r++) {
        const Vec log = splat(logs[start + r]), mean = splat(means[start + r]);
        for (int64_t at = r * kPanel; at < (r + 1) * kPanel; at += kWidth) {
          const Vec weight = exp(load(p + at) - log);
          store(p + at, weight);
          store(s + at, weight * (load(s + at) - mean));
        }
      }
      multiply(gi, 1, d, p, rows, value_sums, start > 0, gs.token);
      multiply(qi, 1, d, s, rows, key_sums, start > 0, qs.token);
      queries.add(s, start, rows, j > 0);
    }
    turn_back(key_sums, dks.token, count, d, scale, dk + j * dks.token);
    turn_back(value_sums, dvs.token, count, d, 1, dv + j * dvs.token);
  }
  queries.give(dq, dqs.token, scale);
}

// The gradients of queries, keys and values, from that of the output y, where `logs` came with it.
std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& g_, const Tensor& q_, const Tensor& k_, const Tensor& v_,
                                                      const Tensor& y_, const Tensor& logs, double scale) {
  const Heads g(g_), q(q_), k(k_), v(v_), y(y_), dq = Heads::like(q_), dk = Heads::like(k_), dv = Heads::like(v_);
  const int64_t heads = q_.size(1), N = q_.size(2), L = k_.size(2), d = q_.size(3);
  const float* lp = logs.const_data_ptr<float>();
  const auto run = d <= kWidth ? attend_back<1> : attend_back<2>;
  at::parallel_for(0, q_.size(0) * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t b = task / heads, h = task % heads;
      run(g.of(b, h), g, q.of(b, h), q, k.of(b, h), k, v.of(b, h), v, y.of(b, h), y, lp + task * N, N, L, d,
          static_cast<float>(scale), dq.of(b, h), dq, dk.of(b, h), dk, dv.of(b, h), dv);
    }
  });
  return {dq.kept, dk.kept, dv.kept};
}

// -------------------------------------------------------------------------------------------------------- gelu

// Calls `each` with the first of some numbers and how many of a register's lanes they fill.
template <class Each>
void in_registers(int64_t count, Each each) {
  for (int64_t i = 0; i < count; i += kWidth) each(i, std::min<int64_t>(kWidth, count - i));
}

// x / (1 + e^-u), u = 2 sqrt(2 / pi) (x + 0.044715 x^3): GELU by its tanh formula. And its derivative.
inline Vec tanh_gelu(Vec x) { return x / (1.f + exp(-1.59576912f * x * (1.f + 0.044715f * x * x))); }
inline Vec tanh_gelu_slope(Vec x) {
  const Vec s = 1.f / (1.f + exp(-1.59576912f * x * (1.f + 0.044715f * x * x)));
  return s + s * (1.f - s) * 1.59576912f * x * (1.f + 0.134145f * x * x);
}

Tensor gelu_tanh(const Tensor& x_) {
  const Tensor x = x_.contiguous();
  Tensor y = at::empty_like(x);
  const float* from = x.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  at::parallel_for(0, x.numel(), 4096, [&](int64_t begin, int64_t end) {
    in_registers(end - begin, [&](int64_t i, int64_t lanes) {
      store_some(to + begin + i, tanh_gelu(load_some(from + begin + i, lanes)), lanes);
    });
  });
  return y;
}

Tensor gelu_tanh_backward(const Tensor& g_, const Tensor& x_) {
  const Tensor x = x_.contiguous(), g = g_.contiguous();
  Tensor d = at::empty_like(x);
  const float *from = x.const_data_ptr<float>(), *gp = g.const_data_ptr<float>();
  float* to = d.mutable_data_ptr<float>();
  at::parallel_for(0, x.numel(), 4096, [&](int64_t begin, int64_t end) {
    in_registers(end - begin, [&](int64_t i, int64_t lanes) {
      const Vec slope = tanh_gelu_slope(load_some(from + begin + i, lanes));
      store_some(to + begin + i, load_some(gp + begin + i, lanes) * slope, lanes);
    });
  });
  return d;
}

// [..., 2 n], value and gate -> value * gelu(gate), [..., n].
Tensor gated_gelu(const Tensor& x_) {
  const Tensor x = x_.contiguous();
  auto shape = x.sizes().vec();
  const int64_t n = shape.back() / 2;
  shape.back() = n;
  Tensor y = at::empty(shape, x.options());
  const float* from = x.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  at::parallel_for(0, x.numel() / (2 * n), 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
      in_registers(n, [&](int64_t i, int64_t lanes) {
        const float* value = from + 2 * n * row + i;
        store_some(to + n * row + i, load_some(value, lanes) * gelu(load_some(value + n, lanes)), lanes);
      });
  });
  return y;
}

Tensor gated_gelu_backward(const Tensor& g_, const Tensor& x_) {
  const Tensor x = x_.contiguous(), g = g_.contiguous();
  const int64_t n = x.size(-1) / 2;
  Tensor d = at::empty_like(x);
  const float *from = x.const_data_ptr<float>(), *gp = g.const_data_ptr<float>();
  float* to = d.mutable_data_ptr<float>();
  at::parallel_for(0, x.numel() / (2 * n), 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
      in_registers(n, [&](int64_t i, int64_t lanes) {
        const int64_t at = 2 * n * row + i;
        const Vec value = load_some(from + at, lanes), gate = load_some(from + at + n, lanes);
        const Vec slope = load_some(gp + n * row + i, lanes);
        Vec bell;
        const Vec share = normal(gate, bell);
        store_some(to + at, slope * gate * share, lanes);
        store_some(to + at + n, slope * value * (share + 0.39894228f * gate * bell), lanes);
      });
  });
  return d;
}

// ------------------------------------------------------------------------------------------- of tokens, by picture
//
// x is [B, N, D]; scale, shift and gate are [B, 1, D], and their gradients sums over the tokens: by stretches of as many,
// then over stretches, so that they are the same for any number of threads.

inline float across(Vec v) {
  float sum = 0;
  for (int i = 0; i < kWidth; i++) sum += v[i];
  return sum;
}

// Calls `each` with every token's picture, its number among all, and where `count` sums [count][D] of its stretch are;
// gives those of each picture, count tensors of [B, 1, D].
template <class Each>
std::vector<Tensor> by_stretches(const Tensor& x, int64_t count, Each each) {
  const int64_t B = x.size(0), N = x.size(1), D = x.size(2), stretches = (N + kStretch - 1) / kStretch;
  Tensor sums = at::zeros({B * stretches, count, D}, x.options());
  float* sp = sums.mutable_data_ptr<float>();
  at::parallel_for(0, B * stretches, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t b = i / stretches, first = i % stretches * kStretch, last = std::min(first + kStretch, N);
      for (int64_t t = first; t < last; t++) each(b, b * N + t, sp + i * count * D);
    }
  });
  std::vector<Tensor> found;
  for (int64_t k = 0; k < count; k++) found.push_back(sums.view({B, stretches, count, D}).select(2, k).sum(1, true));
  return found;
}

// y = (x - mean) / sqrt(variance + eps) scale + shift; and [B, N, 2], mean and inverse deviation of each token.
std::tuple<Tensor, Tensor> modulated_norm(const Tensor& x_, const Tensor& shift_, const Tensor& scale_, double eps) {
  const Tensor x = x_.contiguous(), shift = shift_.contiguous(), scale = scale_.contiguous();
  const int64_t B = x.size(0), N = x.size(1), D = x.size(2);
  TORCH_CHECK(shift.numel() == B * D && scale.numel() == B * D, "modulated_norm: tokens ", x.sizes(), ", scale ", scale.sizes());
  Tensor y = at::empty_like(x), moments = at::empty({B, N, 2}, x.options());
  const float *xp = x.const_data_ptr<float>(), *hp = shift.const_data_ptr<float>(), *sp = scale.const_data_ptr<float>();
  float *yp = y.mutable_data_ptr<float>(), *mp = moments.mutable_data_ptr<float>();
  at::parallel_for(0, B * N, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      const float *row = xp + t * D, *h = hp + t / N * D, *s = sp + t / N * D;
      Vec sum{}, square{};
      in_registers(D, [&](int64_t i, int64_t lanes) { sum += load_some(row + i, lanes); });
      const float mean = across(sum) / D;
      in_registers(D, [&](int64_t i, int64_t lanes) {
        Vec d = load_some(row + i, lanes) - mean;
        for (int64_t j = lanes; j < kWidth; j++) d[j] = 0;
        square += d * d;
      });
      const float inverse = 1 / std::sqrt(across(square) / D + static_cast<float>(eps));
      mp[2 * t] = mean, mp[2 * t + 1] = inverse;
      in_registers(D, [&](int64_t i, int64_t lanes) {
        const Vec v = (load_some(row + i, lanes) - mean) * inverse;
        store_some(yp + t * D + i, v * load_some(s + i, lanes) + load_some(h + i, lanes), lanes);
      });
    }
  });
  return {y, moments};
}

// The gradients of x, shift and scale, from g, that of y.
std::tuple<Tensor, Tensor, Tensor> modulated_norm_backward(const Tensor& g_, const Tensor& x_, const Tensor& scale_,
                                                           const Tensor& moments) {
  const Tensor g = g_.contiguous(), x = x_.contiguous(), scale = scale_.contiguous();
  const int64_t D = x.size(2);
  Tensor dx = at::empty_like(x);
  const float *gp = g.const_data_ptr<float>(), *xp = x.const_data_ptr<float>(), *sp = scale.const_data_ptr<float>();
  const float* mp = moments.const_data_ptr<float>();
  float* dp = dx.mutable_data_ptr<float>();
  const auto sums = by_stretches(x, 2, [&](int64_t b, int64_t t, float* to) {
    const float *row = xp + t * D, *of_row = gp + t * D, *s = sp + b * D, mean = mp[2 * t], inverse = mp[2 * t + 1];
    Vec along{}, twist{};
    in_registers(D, [&](int64_t i, int64_t lanes) {
      const Vec v = (load_some(row + i, lanes) - mean) * inverse, gi = load_some(of_row + i, lanes);
      const Vec h = gi * load_some(s + i, lanes);
      along += h;
      twist += h * v;
      store_some(to + i, load_some(to + i, lanes) + gi, lanes);
      store_some(to + D + i, load_some(to + D + i, lanes) + gi * v, lanes);
    });
    const float a = across(along) / D, w = across(twist) / D;
    in_registers(D, [&](int64_t i, int64_t lanes) {
      const Vec v = (load_some(row + i, lanes) - mean) * inverse;
      const Vec h = load_some(of_row + i, lanes) * load_some(s + i, lanes);
      store_some(dp + t * D + i, inverse * (h - a - v * w), lanes);
    });
  });
  return {dx, sums[0], sums[1]};
}

// x + gate y.
Tensor gated_sum(const Tensor& x_, const Tensor& gate_, const Tensor& y_) {
  const Tensor x = x_.contiguous(), gate = gate_.contiguous(), y = y_.contiguous();
  const int64_t B = x.size(0), N = x.size(1), D = x.size(2);
  TORCH_CHECK(x.sizes() == y.sizes() && gate.numel() == B * D, "gated_sum: tokens ", x.sizes(), " and ", y.sizes());
  Tensor z = at::empty_like(x);
  const float *xp = x.const_data_ptr<float>(), *gp = gate.const_data_ptr<float>(), *yp = y.const_data_ptr<float>();
  float* zp = z.mutable_data_ptr<float>();
  at::parallel_for(0, B * N, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++)
      in_registers(D, [&](int64_t i, int64_t lanes) {
        const Vec v = load_some(gp + t / N * D + i, lanes) * load_some(yp + t * D + i, lanes);
        store_some(zp + t * D + i, load_some(xp + t * D + i, lanes) + v, lanes);
      });
  });
  return z;
}

// The gradients of gate and y, from g, that of the sum.
std::tuple<Tensor, Tensor> gated_sum_backward(const Tensor& g_, const Tensor& gate_, const Tensor& y_) {
  const Tensor g = g_.contiguous(), gate = gate_.contiguous(), y = y_.contiguous();
  const int64_t D = y.size(2);
  Tensor dy = at::empty_like(y);
  const float *gp = g.const_data_ptr<float>(), *wp = gate.const_data_ptr<float>(), *yp = y.const_data_ptr<float>();
  float* dp = dy.mutable_data_ptr<float>();
  const auto sums = by_stretches(y, 1, [&](int64_t b, int64_t t, float* to) {
    in_registers(D, [&](int64_t i, int64_t lanes) {
      const Vec gi = load_some(gp + t * D + i, lanes);
      store_some(dp + t * D + i, gi * load_some(wp + b * D + i, lanes), lanes);
      store_some(to + i, load_some(to + i, lanes) + gi * load_some(yp + t * D + i, lanes), lanes);
    });
  });
  return {sums[0], dy};
}

}  // namespace

TORCH_LIBRARY(sfumato, library) {
  library.def("panel() -> int", []() -> int64_t { return kPanel; });  // columns that weights are filled up to
  library.def("pack_linear(Tensor weight) -> Tensor");
  library.def("pack_convolution(Tensor weight) -> Tensor");
  library.def("pack_winograd(Tensor weight) -> Tensor");
  library.def("linear(Tensor x, Tensor packed, Tensor? bias, Tensor? residual, int columns) -> Tensor");
  library.def("geglu(Tensor x, Tensor packed, Tensor? bias, int columns) -> Tensor");
  library.def(
      "convolution(Tensor x, Tensor packed, Tensor? bias, Tensor? shift, Tensor? residual, int columns, int height, "
      "int width, int step, int padding) -> Tensor");
  library.def("pack_int8(Tensor weight) -> (Tensor packed, Tensor scale, Tensor sum)");
  library.def(
      "linear_int8(Tensor x, Tensor packed, Tensor scale, Tensor sum, Tensor? bias, Tensor? residual, int columns) -> "
      "Tensor");
  library.def(
      "geglu_int8(Tensor x, Tensor packed, Tensor scale, Tensor sum, Tensor? bias, int columns) -> Tensor");
  library.def(
      "convolution_int8(Tensor x, Tensor packed, Tensor scale, Tensor sum, Tensor? bias, Tensor? shift, "
      "Tensor? residual, int columns, int height, int width, int step, int padding) -> Tensor");
  library.def("winograd(Tensor x, Tensor packed, Tensor? bias, Tensor? shift, Tensor? residual, int columns) -> Tensor");
  library.def("group_norm(Tensor x, int groups, Tensor weight, Tensor bias, float eps, bool silu) -> Tensor");
  library.def("winograd_convolution(Tensor x, Tensor weight, Tensor? bias, bool turned) -> Tensor");
  library.def("winograd_weight(Tensor gradient, Tensor x, Tensor like) -> Tensor");
  library.def("attention(Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor)");
  library.def(
      "attention_backward(Tensor gradient, Tensor q, Tensor k, Tensor v, Tensor y, Tensor logs, float scale) -> "
      "(Tensor, Tensor, Tensor)");
  library.def("gelu_tanh(Tensor x) -> Tensor");
  library.def("gelu_tanh_backward(Tensor gradient, Tensor x) -> Tensor");
  library.def("gated_gelu(Tensor x) -> Tensor");
  library.def("gated_gelu_backward(Tensor gradient, Tensor x) -> Tensor");
  library.def("modulated_norm(Tensor x, Tensor shift, Tensor scale, float eps) -> (Tensor, Tensor)");
  library.def(
      "modulated_norm_backward(Tensor gradient, Tensor x, Tensor scale, Tensor moments) -> (Tensor, Tensor, Tensor)");
  library.def("gated_sum(Tensor x, Tensor gate, Tensor y) -> Tensor");
  library.def("gated_sum_backward(Tensor gradient, Tensor gate, Tensor y) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(sfumato, CPU, library) {
  library.impl("pack_linear", &pack_linear);
  library.impl("pack_convolution", &pack_convolution);
  library.impl("pack_winograd", &pack_winograd);
  library.impl("linear", &linear);
  library.impl("geglu", &geglu);
  library.impl("convolution", &convolution);
  library.impl("pack_int8", &pack_int8);
  library.impl("linear_int8", &linear_int8);
  library.impl("geglu_int8", &geglu_int8);
  library.impl("convolution_int8", &convolution_int8);
  library.impl("winograd", &winograd);
  library.impl("group_norm", &group_norm);
  library.impl("winograd_convolution", &winograd_convolution);
  library.impl("winograd_weight", &winograd_weight);
  library.impl("attention", &attention);
  library.impl("attention_backward", &attention_backward);
  library.impl("gelu_tanh", &gelu_tanh);
  library.impl("gelu_tanh_backward", &gelu_tanh_backward);
  library.impl("gated_gelu", &gated_gelu);
  library.impl("gated_gelu_backward", &gated_gelu_backward);
  library.impl("modulated_norm", &modulated_norm);
  library.impl("modulated_norm_backward", &modulated_norm_backward);
  library.impl("gated_sum", &gated_sum);
  library.impl("gated_sum_backward", &gated_sum_backward);
}
