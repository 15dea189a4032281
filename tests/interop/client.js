// A client of the link, written from docs/protocol.md alone, without a line of the Python package.
//
//     node client.js tcp://127.0.0.1:5755
//
// It says hello, opens a session, projects one packed batch in two requests that are under way at once, asks for the
// same batch again in one request, and says bye. Its last line is one JSON object for whoever checks the bytes.

import { createHash } from "node:crypto"
import { decode, encode } from "@msgpack/msgpack"
import { Dealer } from "zeromq"

const VERSION = [0, 2]
const MAX_HEADER_BYTES = 65536
const ITEM_BYTES = { uint8: 1, uint16: 2 }
const CONFIG = { n_features: 203, n_outputs: 301, noise_key: 5 }
const FIRST_FRAME_INDEX = 2 ** 40
const BATCH = 21

class Link {
  constructor(address) {
    this.socket = new Dealer({ linger: 0, receiveTimeout: 30000, sendTimeout: 30000 })
    this.socket.connect(address)
    this.lastId = 0
    this.replies = new Map()
  }

  async send(type, fields = {}, payload = null) {
    const requestId = ++this.lastId
    const header = encode({ type, request_id: requestId, ...fields })
    await this.socket.send(payload === null ? [header] : [header, payload])
    return requestId
  }

  // Replies arrive in any order: keep those of other requests until somebody waits for them.
  async reply(requestId, type) {
    while (!this.replies.has(requestId)) {
      const [header, payload, ...rest] = await this.socket.receive()
      if (header.length > MAX_HEADER_BYTES || rest.length > 0) throw new Error("no message of the protocol")
      const message = decode(header)
      if (message.type === "goodbye") throw new Error(`goodbye: ${message.problem} ${message.remedy}`)
      if (message.type === "error" && message.request_id === null) throw new Error(message.problem)
      if ((payload !== undefined) !== (message.type === "frames")) throw new Error("a payload in the wrong place")
      this.replies.set(message.request_id, { message, payload })
    }
    const { message, payload } = this.replies.get(requestId)
    this.replies.delete(requestId)
    if (message.type === "error") throw new Error(`${message.code}: ${message.problem} ${message.remedy}`)
    if (message.type !== type) throw new Error(`${message.type} came where ${type} was due`)
    return { ...message, payload }
  }

  async ask(type, fields, replyType) {
    return this.reply(await this.send(type, fields), replyType)
  }
}

// Row i has feature k on when (7 * i + k * k) % 5 < 2: a rule that another program can repeat.
function isOn(row, feature) {
  return (7 * row + feature * feature) % 5 < 2
}

function pack(firstRow, rows, nFeatures) {
  const width = Math.ceil(nFeatures / 8)
  const bytes = new Uint8Array(rows * width)
  for (let row = 0; row < rows; row++) {
    for (let feature = 0; feature < nFeatures; feature++) {
      if (isOn(firstRow + row, feature)) bytes[row * width + (feature >> 3)] |= 1 << (feature & 7)
    }
  }
  return bytes
}

async function project(link, session, firstRow, rows) {
  const header = {
    session,
    first_frame_index: FIRST_FRAME_INDEX + firstRow,
    n_features: CONFIG.n_features,
    batch: rows,
  }
  return link.send("project", header, pack(firstRow, rows, CONFIG.n_features))
}

function checked(frames, rows) {
  const expected = rows * CONFIG.n_outputs * ITEM_BYTES[frames.dtype]
  if (frames.batch !== rows || frames.n_outputs !== CONFIG.n_outputs || frames.payload.length !== expected) {
    throw new Error("the frames do not have the size that was asked for")
  }
  if (frames.provenance.n_frames !== rows) throw new Error("the provenance is that of other frames")
  return frames.payload
}

async function refusal(promise) {
  try {
    await promise
  } catch (error) {
    return error.message.split(":")[0]
  }
  return null
}

const link = new Link(process.argv[2])
const hello = { version: VERSION, software: "interop 1.0.0", name: "node" }
const welcome = await link.ask("hello", hello, "welcome")
if (welcome.version[0] !== VERSION[0] || welcome.version[1] !== VERSION[1]) throw new Error("another version")

const opened = await link.ask("open_session", { config: CONFIG }, "session")
const half = Math.floor(BATCH / 2)
const requests = [
  await project(link, opened.session, 0, half),
  await project(link, opened.session, half, BATCH - half),
]
await link.ask("ping", {}, "pong")
const halves = [
  checked(await link.reply(requests[0], "frames"), half),
  checked(await link.reply(requests[1], "frames"), BATCH - half),
]
const again = await link.reply(await project(link, opened.session, 0, BATCH), "frames")
const whole = checked(again, BATCH)
const { status } = await link.ask("status", {}, "server_status")

await link.ask("close_session", { session: opened.session }, "done")
const refused = await refusal(link.ask("close_session", { session: opened.session }, "done"))
await link.ask("bye", {}, "done")
link.socket.close()

const joined = Buffer.concat(halves)
console.log(
  JSON.stringify({
    sha256: createHash("sha256").update(joined).digest("hex"),
    same_in_one_request: joined.equals(whole),
    dtype: again.dtype,
    bytes: joined.length,
    device_id: welcome.description.device_id,
    frames_of_server: status.frames,
    refused,
  }),
)
