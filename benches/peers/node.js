// A server of this protocol on Node: what a user might write instead of taking Chappe,
// for scripts/bench. It does the work of the limit server for each message: check the
// CRC, copy the body, compute the CRC again, send; all replies to what one read brought
// go out with one write. Needs a Node whose zlib has crc32 (20.15, 22.2).
//
//     node node.js [PORT]       prints `ready ADDRESS`, runs until killed

'use strict'
const net = require('node:net')
const zlib = require('node:zlib')

const HEADER_BYTES = 8

if (!zlib.crc32) {
  console.error(`the zlib of Node ${process.version} has no crc32`)
  process.exit(1)
}

function serve(socket) {
  let partial = null
  socket.setNoDelay(true)
  socket.on('error', () => socket.destroy())
  socket.on('data', (input) => {
    if (partial) input = Buffer.concat([partial, input])
    const out = Buffer.allocUnsafe(input.length)
    let at = 0
    while (input.length - at >= HEADER_BYTES) {
      const length = input.readUInt16BE(at)
      if (length < HEADER_BYTES) return socket.destroy()
      if (input.length - at < length) break
      const body = input.subarray(at + HEADER_BYTES, at + length)
      if (zlib.crc32(body) !== input.readUInt32BE(at + 4)) return socket.destroy()
      const reply = out.subarray(at, at + length)
      body.copy(reply, HEADER_BYTES)
      reply.writeUInt16BE(length, 0)
      reply.writeUInt16BE(input.readUInt16BE(at + 2), 2)
      reply.writeUInt32BE(zlib.crc32(reply.subarray(HEADER_BYTES)), 4)
      at += length
    }
    // A copy: what is left must not keep the whole of it alive.
    partial = at < input.length ? Buffer.from(input.subarray(at)) : null
    if (at > 0) socket.write(out.subarray(0, at))
  })
}

const server = net.createServer(serve)
server.listen(Number(process.argv[2] ?? 0), '127.0.0.1', 511, () => {
  console.log(`ready 127.0.0.1:${server.address().port}`)
})
