// The notebooks in a real JupyterLab: Run All, save, use every control, reload; fails on an error, a traceback or a dead control.
//   npm install playwright-core    (where this file, or a copy of it, finds it)
//   jupyter lab --no-browser --ServerApp.token= --port=8899 --expose-app-in-browser
//   CHROMIUM=/usr/bin/chromium node tests/lab.mjs http://localhost:8899 FOLDER_FOR_PICTURES notebooks/01_*.ipynb ...
import { chromium } from 'playwright-core';

const [server, folder, ...notebooks] = process.argv.slice(2);
const TYPED = {
  two: 'The train was late.\nA cat sat on the mat.', empty: '', one: 'Worst day ever', money: 'It cost $5 and $6.\nIt was $7.',
  scripts: '電車がまた遅れました。\n猫が座った。', long: 'and so it goes on '.repeat(200), forty: 'A sentence.\n'.repeat(40),
};
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox', '--disable-gpu'] });
const page = await browser.newPage({ viewport: { width: 1300, height: 1600 } });

async function open(path) {
  await page.goto(`${server}/lab/tree/${path}?reset`);
  await page.waitForSelector('.jp-NotebookPanel .jp-Cell', { timeout: 120_000 });
  await page.waitForTimeout(5000);
}

async function idle() {
  await page.waitForTimeout(2500);
  const isIdle = () => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle';
  await page.waitForFunction(isIdle, null, { timeout: 3_600_000, polling: 500 });
}

// Scrolls to the cell with controls, takes a picture, and returns what its output says in words.
async function look(name) {
  const index = await page.evaluate(async () => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    const found = notebook.widgets.findIndex((cell) => /control\(/.test(cell.model.sharedModel.getSource()));
    if (found >= 0) await notebook.scrollToItem(found, 'start');
    return found;
  });
  await page.waitForTimeout(2000);
  await page.screenshot({ path: `${folder}/${name}.png` });
  if (index < 0) return null;
  const output = page.locator(`.jp-Cell[data-windowed-list-index="${index}"] .jp-Cell-outputWrapper`);
  const words = await output.innerText();
  if (/Traceback|Warning:|Error:|<function/.test(words)) throw new Error(`${name}: ${words}`);
  return { output, words };
}

for (const path of notebooks) {
  const name = path.match(/(\d\d)_/)[1];
  await open(path);
  await page.evaluate(async () => {
    const panel = window.jupyterapp.shell.currentWidget;
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.restart();
    await window.jupyterapp.commands.execute('notebook:run-all-cells');
  });
  await idle();
  await page.evaluate(() => window.jupyterapp.commands.execute('docmanager:save'));
  const errors = await page.evaluate(() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
    .flatMap((cell) => cell.toJSON().outputs ?? []).filter((output) => output.output_type === 'error').map((output) => output.evalue));
  if (errors.length) throw new Error(`${path}: ${errors}`);

  const start = await look(`${name}_start`);
  if (start) {
    const field = start.output.locator('textarea');
    for (const [kind, text] of (await field.count()) ? Object.entries(TYPED) : []) {
      await field.fill(text);
      await field.blur();
      await idle();
      await look(`${name}_${kind}`);
    }
    const sliders = start.output.locator('.noUi-handle');
    for (let i = 0; i < await sliders.count(); i++) {
      for (const key of ['Home', 'End']) {
        await sliders.nth(i).press(key);
        await idle();
        await look(`${name}_slider${i}_${key}`);
      }
    }
    await page.evaluate(() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown());
    await open(path);
    const { output } = await look(`${name}_opened_again`);
    if (!(await output.locator('img, table').count())) throw new Error(`${path}: nothing is left beside the controls`);
  }
  await page.evaluate(() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown());
  console.log(path, 'passed');
}
await browser.close();
