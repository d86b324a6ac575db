/**
 * Chromium for tests/browser.py: a line of JSON in, a line of JSON out.
 *
 * `node web_page.mjs FOLDER CHROMIUM`; the folder has playwright-core.
 */

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [folder, executablePath] = process.argv.slice(2);
const require = createRequire(`${folder}/package.json`);
const { chromium } = require("playwright-core");
const axe = require("axe-core");

const browser = await chromium.launch({
  executablePath,
  args: [
    // A GPU that is computed, and a camera that shows a moving pattern.
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--use-fake-device-for-media-stream",
  ],
});

let context, page, log;

const commands = {
  /** A new window without a past; `script` runs before the page's own. */
  async open({ url, script, ...options }) {
    await context?.close();
    log = { requests: [], problems: [] };
    context = await browser.newContext(options);
    context.on("request", (request) => log.requests.push(request.url()));
    context.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) {
        log.problems.push(message.text());
      }
    });
    context.on("weberror", (event) => log.problems.push(`${event.error()}`));
    page = await context.newPage();
    page.setDefaultTimeout(30_000);
    await page.addInitScript(() => {
      Object.defineProperty(navigator, "hardwareConcurrency", { value: 2 });
      window.answers = [];
      document.addEventListener("answer", ({ detail }) =>
        answers.push({ ...detail, pixels: Array.from(detail.pixels) }),
      );
    });
    if (script) await page.addInitScript(script);
    await page.goto(url);
  },

  /** Any of playwright's methods of a page. */
  call: ({ method, arguments: given }) => page[method](...given),

  /** Wait for an expression to be true; playwright's own way needs eval. */
  async until({ script }) {
    for (let tries = 0; tries < 600; tries++) {
      if (await page.evaluate(script)) return;
      await page.waitForTimeout(50);
    }
    throw new Error(`${script} is not true after 30 s`);
  },

  /** What the page says to a picture file: an answer, or why there is none. */
  async choose({ path }) {
    const count = await page.evaluate("answers.length");
    await page.setInputFiles("#file", path);
    const error = "document.getElementById('error').textContent";
    await commands.until({ script: `answers.length > ${count} || ${error}` });
    const found = await page.evaluate(error);
    return found ? { error: found } : page.evaluate("answers.at(-1)");
  },

  key: ({ keys }) => page.keyboard.press(keys),

  /** What axe-core finds, in a line for each element. */
  async axe() {
    await page.evaluate(axe.source);
    return page.evaluate(async () => {
      const { violations } = await window.axe.run();
      return violations.flatMap(({ id, nodes }) =>
        nodes.map((node) => `${id}: ${node.html} ${node.failureSummary}`),
      );
    });
  },

  log: () => log,

  grant: ({ permission }) => context.grantPermissions([permission]),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...given } = JSON.parse(line);
  let reply;
  try {
    reply = { result: (await commands[command](given)) ?? null };
  } catch (error) {
    reply = { error: error.message };
  }
  console.log(JSON.stringify(reply));
}
await browser.close();
