// A js-libp2p peer: serves /echo, prints its address, and for every address on its input dials it, echoes 32 MiB and
// 50 short messages through it, and prints what came of that.
import { createInterface } from 'node:readline'
import { createLibp2p } from 'libp2p'
import { multiaddr } from '@multiformats/multiaddr'
import { noise } from '@chainsafe/libp2p-noise'
import { tcp } from '@libp2p/tcp'
import { tls } from '@libp2p/tls'
import { yamux } from '@chainsafe/libp2p-yamux'

async function send (stream, data) {
  for (let at = 0; at < data.byteLength; at += 65536) {
    if (!stream.send(data.subarray(at, at + 65536))) await stream.onDrain()
  }
}

async function receive (stream) {
  const parts = []
  for await (const part of stream) parts.push(Buffer.from(part.subarray()))
  return Buffer.concat(parts)
}

async function echoed (node, address, data) {
  const stream = await node.dialProtocol(multiaddr(address), '/echo')
  const got = receive(stream)
  await send(stream, data)
  await stream.close()
  if (!(await got).equals(data)) throw new Error('another echo')
}

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [process.argv[2] === '/noise' ? noise() : tls()],
  streamMuxers: [yamux()]
})
await node.handle('/echo', async (stream) => {
  for await (const part of stream) {
    if (!stream.send(part)) await stream.onDrain()
  }
  await stream.close()
})
console.log(node.getMultiaddrs()[0].toString())

for await (const address of createInterface({ input: process.stdin })) {
  try {
    const bulk = Buffer.alloc(32 * 1024 * 1024)
    for (let at = 0; at < bulk.length; at += 4) bulk.writeUInt32LE(at, at)
    await echoed(node, address, bulk)
    for (let count = 0; count < 50; count++) await echoed(node, address, Buffer.from(`short ${count}`))
    console.log('ok')
  } catch (error) {
    console.log(String(error.stack).replaceAll('\n', ' | '))
  }
}
await node.stop()
