/** Elements. What they say is set as text and never as HTML, so no prompt can be more than words. */

/** The element of this id. */
export const the = (id) => document.getElementById(id);

/** A new element with these properties and children. */
export function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A file or blob as a data: URL. */
export function asData(blob) {
  return new Promise((resolve, reject) => {
    const reader = Object.assign(new FileReader(), {
      onload: () => resolve(reader.result),
      onerror: () => reject(new Error("The picture cannot be read.")),
    });
    reader.readAsDataURL(blob);
  });
}
