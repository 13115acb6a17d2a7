"""How good a model is: measures of what it keeps, of what it draws, and of whether that is what was asked for."""
