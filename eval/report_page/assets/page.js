"use strict";
const root = document.documentElement;
document.getElementById("theme").addEventListener("click", () => {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const now = root.dataset.theme || system;
  root.dataset.theme = now === "dark" ? "light" : "dark";
});
for (const button of document.querySelectorAll("button[data-fold]")) {
  button.addEventListener("click", () => {
    const tree = document.getElementById(button.dataset.fold);
    const nodes = [...tree.querySelectorAll("details")];
    const open = !nodes.every((node) => node.open);
    for (const node of nodes) node.open = open;
  });
}
