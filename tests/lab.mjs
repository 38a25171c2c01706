// The notebooks in a real JupyterLab: Run All, save, use every control, reload; fails on an error, a traceback or a dead control.
//   npm install playwright-core    (where this file, or a copy of it, finds it)
//   jupyter lab --no-browser --ServerApp.token= --port=8899 --expose-app-in-browser
//   CHROMIUM=/usr/bin/chromium node tests/lab.mjs http://localhost:8899 FOLDER_FOR_PICTURES notebooks/01_*.ipynb ...
// What passed is written to data/results/lab.csv, a row a notebook.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { chromium } from 'playwright-core';

const [server, folder, ...notebooks] = process.argv.slice(2);
const TYPED = {
  two: 'The train was late.\nA cat sat on the mat.', empty: '', one: 'Worst day ever', money: 'It cost $5 and $6.\nIt was $7.',
  scripts: '電車がまた遅れました。\n猫が座った。', long: 'and so it goes on '.repeat(200), forty: 'A sentence.\n'.repeat(40),
};
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox', '--disable-gpu'] });
const page = await browser.newPage({ viewport: { width: 1300, height: 1600 } });

const RECORD = 'data/results/lab.csv';

function keep(row) {
  const old = existsSync(RECORD) ? readFileSync(RECORD, 'utf8').trim().split('\n').slice(1) : [];
  const others = old.filter((line) => !line.startsWith(`${row.notebook},`));
  const lines = [...others, Object.values(row).join(',')].sort();
  writeFileSync(RECORD, `${[Object.keys(row).join(','), ...lines].join('\n')}\n`);
}

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

// Every picture of the notebook that has arrived, however far down it is.
const pictures = () => page.evaluate(async () => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  let seen = 0;
  for (let i = 0; i < notebook.widgets.length; i++) {
    const outputs = notebook.widgets[i].model.sharedModel.toJSON().outputs ?? [];
    if (!outputs.some((output) => output.data?.['image/png'])) continue;
    await notebook.scrollToItem(i, 'start');
    await new Promise((resolve) => setTimeout(resolve, 300));
    seen += [...notebook.widgets[i].node.querySelectorAll('img')].filter((image) => image.naturalWidth > 0).length;
  }
  return seen;
});

for (const path of notebooks) {
  const [notebook, number] = path.match(/((\d\d)_.*)\.ipynb/).slice(1);
  const started = Date.now();
  const done = { notebook, 'code cells': 0, figures: 0, 'texts typed': 0, 'slider ends': 0 };
  await open(path);
  await page.evaluate(async () => {
    const panel = window.jupyterapp.shell.currentWidget;
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.restart();
    await window.jupyterapp.commands.execute('notebook:run-all-cells');
  });
  await idle();
  await page.evaluate(() => window.jupyterapp.commands.execute('docmanager:save'));
  const cells = await page.evaluate(() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
    .map((cell) => cell.toJSON()).filter((cell) => cell.cell_type === 'code'));
  const errors = cells.flatMap((cell) => cell.outputs).filter((output) => output.output_type === 'error');
  if (errors.length) throw new Error(`${path}: ${errors.map((error) => error.evalue)}`);
  done['code cells'] = cells.filter((cell) => cell.execution_count).length;
  if (done['code cells'] < cells.length) throw new Error(`${path}: ${cells.length} cells, ${done['code cells']} run`);

  const start = await look(`${number}_start`);
  if (start) {
    const field = start.output.locator('textarea');
    for (const [kind, text] of (await field.count()) ? Object.entries(TYPED) : []) {
      await field.fill(text);
      await field.blur();
      await idle();
      await look(`${number}_${kind}`);
      done['texts typed'] += 1;
    }
    const sliders = start.output.locator('.noUi-handle');
    for (let i = 0; i < await sliders.count(); i++) {
      for (const key of ['Home', 'End']) {
        await sliders.nth(i).press(key);
        await idle();
        await look(`${number}_slider${i}_${key}`);
        done['slider ends'] += 1;
      }
    }
  }
  await page.evaluate(() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown());
  await open(path);
  if (start) {
    const { output } = await look(`${number}_opened_again`);
    if (!(await output.locator('img, table').count())) throw new Error(`${path}: nothing is left beside the controls`);
  }
  done.figures = await pictures();
  const stored = cells.flatMap((cell) => cell.outputs).filter((output) => output.data?.['image/png']).length;
  if (done.figures < stored) throw new Error(`${path}: ${stored} figures, ${done.figures} are seen when it is opened again`);
  await page.evaluate(() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown());
  keep({ ...done, minutes: ((Date.now() - started) / 60_000).toFixed(1) });
  console.log(path, 'passed');
}
await browser.close();
