// What Furo leaves out for screen readers and keyboard users.
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
  // Only what can have the focus scrolls with the keyboard.
  const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const scrolls = target.scrollWidth > target.clientWidth;
      target.toggleAttribute("tabindex", scrolls);
      if (scrolls) target.tabIndex = 0;
    }
  });
  for (const box of document.querySelectorAll("pre, .table-wrapper")) {
    watch.observe(box);
  }
});
