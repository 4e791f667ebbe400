"use strict";
// What every page has: elements by name, data that is kept in the page, light and dark.

const $ = (name) => document.getElementById(name);
const dataOf = (name) => JSON.parse($(name).textContent);

/** Light or dark as chosen before, else as the system has it; return what switches it and gives the new one. */
const startTheme = (chosen) => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let own = chosen;
  const follow = () => {
    root.dataset.theme = own ?? (dark.matches ? "dark" : "light");
  };
  dark.addEventListener("change", follow);
  follow();
  return () => {
    own = root.dataset.theme === "dark" ? "light" : "dark";
    follow();
    return own;
  };
};
