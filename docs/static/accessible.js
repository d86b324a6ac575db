// What Furo leaves out for screen readers and for users of a keyboard.
addEventListener("load", () => {
  for (const caption of document.querySelectorAll("p.caption[role=heading]")) {
    caption.ariaLevel = "2";
  }
  for (const [selector, label] of [
    [".sidebar-drawer", "Pages"],
    [".toc-drawer", "On this page"],
  ]) {
    const landmark = document.querySelector(selector);
    if (landmark) landmark.ariaLabel = label;
  }
  for (const box of document.querySelectorAll("pre, .table-wrapper")) {
    // Keys scroll only what can have the focus.
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
});
