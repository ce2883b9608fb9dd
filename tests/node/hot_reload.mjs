// Opens a page of a Vite server in Chromium, edits two of its files, and prints what the page made of that, as JSON.
import { writeFile } from 'node:fs/promises'
import { chromium } from 'playwright-core'

const { url, token, path, folder, executablePath, args } = JSON.parse(process.argv[2])
const browser = await chromium.launch({ executablePath, args })
try {
  const context = await browser.newContext({ baseURL: url })
  const login = await context.request.post('/login', { data: { token } })
  if (!login.ok()) throw new Error(`login: ${login.status()}`)
  const page = await context.newPage()
  const errors = []
  const sockets = []
  page.on('pageerror', (error) => errors.push(String(error)))
  page.on('websocket', (socket) => sockets.push(socket.url().replace(/token=.*/, 'token=…')))
  const connected = page.waitForEvent('console', (message) => message.text() === '[vite] connected.')
  await page.goto(path)
  await page.getByText('before the edit').waitFor()
  await connected
  await page.evaluate(() => { window.isTheSamePage = true })
  await writeFile(`${folder}/src/text.js`, "export const text = 'after the edit'\n")
  await page.getByText('after the edit').waitFor()
  await writeFile(`${folder}/src/style.css`, '#text { color: rgb(1, 2, 3) }\n')
  await page.waitForFunction(() => getComputedStyle(document.querySelector('#text')).color === 'rgb(1, 2, 3)')
  const isTheSamePage = await page.evaluate(() => window.isTheSamePage === true)
  const place = new URL(page.url()).pathname
  console.log(JSON.stringify({ isTheSamePage, place, sockets, errors }))
} finally {
  await browser.close()
}
