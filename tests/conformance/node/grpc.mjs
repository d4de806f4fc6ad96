// @grpc/grpc-js against a gateway, with stubs made of the .proto files as they are:
// node grpc.mjs ADDRESS TOKEN PROTO_FOLDER
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [address, token, protos] = process.argv.slice(2);
const files = ["reelmesh/v1/video_service.proto", "reelmesh/v1/fleet_service.proto"];
const loaded = loader.loadSync(files, {
  includeDirs: [protos], keepCase: true, longs: Number, enums: String, oneofs: true, defaults: true,
});
const { v1 } = grpc.loadPackageDefinition(loaded).reelmesh;
const credentials = grpc.credentials.createInsecure();
const videos = new v1.VideoService(address, credentials);
const fleet = new v1.FleetService(address, credentials);

function metadata(bearer = token) {
  const found = new grpc.Metadata();
  found.set("authorization", `Bearer ${bearer}`);
  return found;
}

function call(stub, method, request, bearer) {
  const deadline = Date.now() + 20_000;
  return new Promise((resolve, reject) =>
    stub[method](request, metadata(bearer), { deadline }, (error, answer) =>
      error ? reject(error) : resolve(answer)));
}

async function stream(method, request) {
  const found = [];
  const deadline = Date.now() + 20_000;
  for await (const each of videos[method](request, metadata(), { deadline })) found.push(each);
  return found;
}

async function refusal(asked, code) {
  try {
    await asked;
  } catch (error) {
    assert.equal(error.code, code, error.message);
    return error;
  }
  assert.fail("it was not refused");
}

const data = (events) => Buffer.concat(
  events.filter(({ event }) => event.event === "chunk").map(({ event }) => event.chunk.data));
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

// Made and followed in one call.
const events = await stream("GenerateVideo", { spec: { prompt: "a panda dances", seed: 7 } });
const kinds = events.map(({ event }) => event.event);
assert.equal(kinds[0], "queued");
assert.equal(kinds.at(-1), "completed");
const completed = events.at(-1).event;
assert.equal(sha256(data(events)), completed.completed.sha256);
const video_id = completed.video_id;

// Taken up after an event, as after a lost connection.
const middle = events.find(({ event }) => event.event === "chunk").event;
const rest = await stream("WatchVideo", { video_id, after_seq: middle.seq });
assert.ok(rest.every(({ event }) => event.seq === 0 || event.seq > middle.seq));
assert.equal(rest.at(-1).event.event, "completed");

// Downloaded, from an offset too, and its pictures.
const whole = await stream("DownloadVideo", { video_id });
const mp4 = Buffer.concat(whole.map((each) => each.data));
assert.equal(whole[0].total_bytes, mp4.length);
assert.equal(whole[0].content_type, "video/mp4");
assert.equal(sha256(mp4), whole[0].sha256);
const part = await stream("DownloadVideo", { video_id, offset: 100 });
assert.deepEqual(Buffer.concat(part.map((each) => each.data)), mp4.subarray(100));
for (const variant of ["VIDEO_VARIANT_THUMBNAIL", "VIDEO_VARIANT_SPRITESHEET"]) {
  const found = await stream("DownloadVideo", { video_id, variant });
  assert.equal(found[0].content_type, "image/jpeg");
  assert.deepEqual([...found[0].data.subarray(0, 3)], [0xff, 0xd8, 0xff]);
}

// Remixed, read, listed.
const options = { remixed_from_video_id: video_id };
const { video: remix } = await call(
  videos, "CreateVideo", { spec: { prompt: "a bear dances" }, options });
assert.equal(remix.remixed_from_video_id, video_id);
assert.equal(remix.spec.seed, 7);
assert.equal((await stream("WatchVideo", { video_id: remix.id })).at(-1).event.event, "completed");
const { video } = await call(videos, "GetVideo", { video_id });
assert.equal(video.status, "VIDEO_STATUS_COMPLETED");
const first = await call(videos, "ListVideos", { page_size: 1 });
assert.deepEqual(first.videos.map((each) => each.id), [remix.id]);
const second = await call(
  videos, "ListVideos", { page_size: 1, page_token: first.next_page_token });
assert.deepEqual(second.videos.map((each) => each.id), [video_id]);
assert.equal((await call(fleet, "ListModels", {})).models.length, 1);

// Refused, with a status and its details.
const wrong = await refusal(
  call(videos, "CreateVideo", { spec: { prompt: "x", num_frames: 10 } }),
  grpc.status.INVALID_ARGUMENT);
assert.match(wrong.details, /num_frames/);
assert.ok(wrong.metadata.get("grpc-status-details-bin")[0].includes("BadRequest"));
await refusal(call(videos, "GetVideo", { video_id: "ap-none" }), grpc.status.NOT_FOUND);
await refusal(call(videos, "ListVideos", {}, "nonsense"), grpc.status.UNAUTHENTICATED);

// Cancelled: its prompt has the node wait.
const { video: waits } = await call(videos, "CreateVideo", { spec: { prompt: "wait" } });
await refusal(
  stream("DownloadVideo", { video_id: waits.id }), grpc.status.FAILED_PRECONDITION);
const { video: cancelled } = await call(videos, "CancelVideo", { video_id: waits.id });
assert.equal(cancelled.status, "VIDEO_STATUS_CANCELLED");
for (const id of [video_id, remix.id, waits.id]) {
  await call(videos, "DeleteVideo", { video_id: id });
  await refusal(call(videos, "GetVideo", { video_id: id }), grpc.status.NOT_FOUND);
}
console.log("all of it");
