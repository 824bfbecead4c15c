// Sets the chosen theme before the first paint, so that a dark page does not flash white. Not a module: modules run later.
"use strict";
try {
  const theme = localStorage.getItem("theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch {
  // A browser that keeps nothing for this page shows the system's theme.
}
