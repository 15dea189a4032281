// A client of the link, written from docs/protocol.md alone, without a line of the Python package.
//
//     node client.js tcp://127.0.0.1:5755
//
// It says hello, opens a session, projects one packed batch in two requests that are under way at once, and asks for
// the same batch again in one request. Before that is answered it ends its connection, comes back on another one, and
// repeats what it misses. It cancels a request, and says bye. Its last line is one JSON object for whoever checks the
// bytes.

import { createHash, randomBytes } from "node:crypto"
import { decode, encode } from "@msgpack/msgpack"
import { Dealer } from "zeromq"

const VERSION = [1, 0]
const FEATURES = ["cancel", "deadline", "resume"]
const ROLES = ["observer", "user", "operator"]
const MAX_HEADER_BYTES = 65536
const ITEM_BYTES = { uint8: 1, uint16: 2 }
const CONFIG = { n_features: 203, n_outputs: 301, noise_key: 5 }
const FIRST_FRAME_INDEX = 2 ** 40
const BATCH = 21
const BATCH_TO_CANCEL = 1000
const DEADLINE_S = 60

class Link {
  constructor(address) {
    this.address = address
    this.token = randomBytes(24).toString("hex")
    this.lastId = 0
    this.replies = new Map()
  }

  // Say hello on a new connection. Numbers of requests count on over all connections.
  async connect() {
    this.socket = new Dealer({ linger: 0, receiveTimeout: 30000, sendTimeout: 30000 })
    this.socket.connect(this.address)
    const hello = { version: VERSION, software: "interop 1.0.0", name: "node", features: FEATURES, token: this.token }
    const welcome = await this.ask("hello", hello, "welcome")
    if (welcome.version[0] !== VERSION[0] || welcome.version[1] !== VERSION[1]) throw new Error("another version")
    const granted = [...welcome.features].sort()
    if (granted.join() !== FEATURES.join()) throw new Error(`other features than those asked for: ${granted}`)
    if (!ROLES.includes(welcome.role)) throw new Error(`an unknown role: ${welcome.role}`)
    if (typeof welcome.resumed !== "boolean") throw new Error("welcome does not tell whether the conversation goes on")
    if (welcome.servers[0] !== welcome.server_id) throw new Error("the server is not the first of those that it names")
    return welcome
  }

  // End the connection without a word, as a network may do.
  drop() {
    this.socket.close()
  }

  async send(type, fields = {}, payload = null, requestId = ++this.lastId) {
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

// Project rows of the batch; a request is repeated under its own number.
async function project(link, session, firstRow, rows, answered, requestId = undefined) {
  const header = {
    session,
    first_frame_index: FIRST_FRAME_INDEX + firstRow,
    n_features: CONFIG.n_features,
    batch: rows,
    answered,
    deadline_s: DEADLINE_S,
  }
  return link.send("project", header, pack(firstRow, rows, CONFIG.n_features), requestId)
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
const first = await link.connect()
if (first.resumed) throw new Error("the server goes on with a client that it has never seen")

const opened = await link.ask("open_session", { config: CONFIG }, "session")
const session = opened.session
const half = Math.floor(BATCH / 2)
const answered = link.lastId + 1
const requests = [
  await project(link, session, 0, half, answered),
  await project(link, session, half, BATCH - half, answered),
]
await link.ask("ping", { answered }, "pong")
const halves = [
  checked(await link.reply(requests[0], "frames"), half),
  checked(await link.reply(requests[1], "frames"), BATCH - half),
]

const unanswered = await project(link, session, 0, BATCH, answered)
link.drop()
const second = await link.connect()
if (!second.resumed || second.server_id !== first.server_id) throw new Error("the server does not know this client")
await project(link, session, 0, half, answered, requests[0])
await project(link, session, 0, BATCH, answered, unanswered)
const fromMemory = checked(await link.reply(requests[0], "frames"), half)
const again = await link.reply(unanswered, "frames")
const whole = checked(again, BATCH)
await link.ask("ping", { answered: link.lastId + 1 }, "pong")

const withdrawn = await project(link, session, 0, BATCH_TO_CANCEL, link.lastId + 1)
await link.ask("cancel", { target: withdrawn }, "done")
const cancelled = await refusal(link.reply(withdrawn, "frames"))
const { status } = await link.ask("status", {}, "server_status")

await link.ask("close_session", { session }, "done")
const refused = await refusal(link.ask("close_session", { session }, "done"))
await link.ask("bye", {}, "done")
link.socket.close()

const joined = Buffer.concat(halves)
console.log(
  JSON.stringify({
    sha256: createHash("sha256").update(joined).digest("hex"),
    same_in_one_request: joined.equals(whole),
    same_from_memory: halves[0].equals(fromMemory),
    dtype: again.dtype,
    bytes: joined.length,
    device_id: first.description.device_id,
    role: second.role,
    frames_of_server: status.counters.frames,
    resumed: status.counters.resumed,
    answered_from_memory: status.counters.repeated > 0, // and the last batch, if it was ready before we were back
    cancelled_of_server: status.counters.cancelled,
    cancelled,
    refused,
  }),
)
