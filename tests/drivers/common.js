// What the Node programs share.
"use strict";

// Runs every test, prints a line for each, and ends the process.
async function runTests(tests) {
  let failed = 0;
  for (const [name, test] of Object.entries(tests)) {
    let timer;
    const limit = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error("still running after 60 s")), 60_000);
    });
    try {
      await Promise.race([test(), limit]);
      console.log(`ok ${name}`);
    } catch (error) {
      failed++;
      console.log(`FAILED ${name}\n${error.stack}`);
    }
    clearTimeout(timer);
  }
  process.exit(failed ? 1 : 0);
}

module.exports = { runTests };
