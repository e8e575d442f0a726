// Asks a gaspar daemon many things at once over one connection; docs/protocol.rst describes the bytes.
// node examples/javascript_client.mjs HOST PORT MESSAGE...      prints what each message was answered
import net from "node:net";
const REQUEST = 1, REPLY = 17, ERROR = 18, PART = 19, HANDLER_ERROR = 6;

export class Client {
  #socket; #head; #end; // #head: of the frame whose rest is to come; #end: why nothing more can be asked
  #calls = new Map(); #lastId = 0; // unanswered requests, by id
  constructor(host, port) {
    this.#socket = net.connect({ host, port, noDelay: true });
    this.#socket.on("readable", () => this.#read()).on("error", (error) => this.#lose(error));
    this.#socket.on("close", () => this.#lose(new Error("the connection ended"))).write("GSP2");
  }
  close() { this.#socket.end(); }
  // Resolves to the reply, a Buffer. An error has the name of its code. 256 may be unanswered, more are OVERLOADED.
  request(message, milliseconds = 0) {
    return new Promise((resolve, reject) => {
      if (this.#end) return reject(this.#end);
      const body = Buffer.from(message), head = Buffer.alloc(20);
      do this.#lastId = (this.#lastId % 0xffffffff) + 1; while (this.#calls.has(this.#lastId));
      this.#calls.set(this.#lastId, { resolve, reject, parts: [] });
      [body.length, this.#lastId, REQUEST << 24, milliseconds].forEach((word, at) => head.writeUInt32BE(word, 4 * at));
      this.#socket.write(Buffer.concat([head, body]));
    });
  }
  #read() {
    for (;;) {
      const head = this.#head, size = head ? head.readUInt16BE(10) + head.readUInt32BE(0) : 20;
      const bytes = size ? this.#socket.read(size) : Buffer.alloc(0);
      if (bytes?.length !== size) return; // it has not all come
      this.#head = head ? undefined : bytes;
      if (head) this.#take(head[8], head[9], head.readUInt32BE(4), bytes.subarray(head.readUInt16BE(10)));
    }
  }
  #take(kind, code, id, body) {
    const call = this.#calls.get(id);
    if (kind === PART) call?.parts.push(body);
    if (kind !== REPLY && kind !== ERROR) return;
    this.#calls.delete(id);
    if (kind === REPLY) return call?.resolve(Buffer.concat([...call.parts, body]));
    const { type, message, traceback } = JSON.parse(body), name = code === HANDLER_ERROR ? "HANDLER_ERROR" : type;
    const error = Object.assign(new Error(message), { name, type, traceback });
    if (id) call?.reject(error); else this.#lose(error);
  }
  #lose(error) {
    this.#end ??= error;
    for (const call of this.#calls.values()) call.reject(error);
    this.#calls.clear();
  }
}
if (process.argv[1]?.endsWith("javascript_client.mjs")) {
  const [host, port, ...messages] = process.argv.slice(2), client = new Client(host, Number(port));
  const answers = await Promise.allSettled(messages.map((message) => client.request(message)));
  for (const [at, { value, reason: error }] of answers.entries())
    if (value) console.log(`${messages[at]} -> ${value}`);
    else console.error(`${messages[at]} failed: ${error.name}: ${error.message}\n${error.traceback ?? ""}`);
  process.exitCode = answers.some((answer) => answer.reason) ? 1 : 0;
  client.close();
}
