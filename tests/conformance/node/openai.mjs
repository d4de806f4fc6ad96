// The official npm client, unmodified, against a gateway: node openai.mjs BASE_URL TOKEN NARROW_TOKEN
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, apiKey, narrowKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 1 });
const videos = client.videos;

async function ended(id) {
  for (;;) {
    const video = await videos.retrieve(id);
    if (["completed", "failed"].includes(video.status)) return video;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function refusal(asked, kind) {
  try {
    await asked;
  } catch (error) {
    assert.ok(error instanceof kind, `${error}`);
    return error;
  }
  assert.fail("it was not refused");
}

async function bytes(id, query) {
  const answer = await videos.downloadContent(id, query);
  return [answer.headers.get("content-type"), Buffer.from(await answer.arrayBuffer())];
}

// Created, followed, read, listed.
const created = await videos.create({ prompt: "a panda dances", size: "480p", seconds: "2" });
assert.equal(created.object, "video");
assert.equal(created.size, "128x96");
assert.equal(created.seconds, "2");
const video = await ended(created.id);
assert.equal(video.status, "completed");
assert.equal(video.progress, 100);
const [kind, mp4] = await bytes(video.id);
assert.equal(kind, "video/mp4");
assert.equal(mp4.length, video.result.size_bytes);
for (const variant of ["thumbnail", "spritesheet"]) {
  const [type, picture] = await bytes(video.id, { variant });
  assert.equal(type, "image/jpeg");
  assert.deepEqual([...picture.subarray(0, 3)], [0xff, 0xd8, 0xff]);
}

// Remixed.
const remix = await videos.remix(video.id, { prompt: "a bear dances" });
assert.equal(remix.remixed_from_video_id, video.id);
assert.equal(remix.prompt, "a bear dances");
assert.equal(remix.seed, video.seed);
await ended(remix.id);
const listed = [];
for await (const each of videos.list({ limit: 1 })) listed.push(each.id);
assert.deepEqual(listed, [remix.id, video.id]);
const page = await videos.list({ limit: 1, order: "asc" });
assert.deepEqual(page.data.map((each) => each.id), [video.id]);

// Refused, by the client's own classes.
const wrong = await refusal(videos.create({ prompt: "x", size: "1x1" }), OpenAI.BadRequestError);
assert.equal(wrong.param, "size");
assert.equal(wrong.code, "invalid_request");
const still = new File([Buffer.from("\x89PNG")], "still.png", { type: "image/png" });
const image = await refusal(
  videos.create({ prompt: "x", input_reference: still }), OpenAI.BadRequestError);
assert.equal(image.param, "input_reference");
const nowhere = video.id.slice(0, 3) + "0".repeat(26);
assert.equal(
  (await refusal(videos.retrieve(nowhere), OpenAI.NotFoundError)).code, "video_not_found");
await refusal(videos.remix(nowhere, { prompt: "x" }), OpenAI.NotFoundError);
const narrow = new OpenAI({ baseURL, apiKey: narrowKey, maxRetries: 0 });
await refusal(narrow.videos.create({ prompt: "x" }), OpenAI.PermissionDeniedError);
const nobody = new OpenAI({ baseURL, apiKey: "nonsense", maxRetries: 0 });
await refusal(nobody.videos.list(), OpenAI.AuthenticationError);

// Cancelled: it reads as failed. Its prompt has the node wait.
const waits = await videos.create({ prompt: "wait" });
const early = await refusal(videos.downloadContent(waits.id), OpenAI.ConflictError);
assert.equal(early.code, "not_finished");
await client.post(`/videos/${waits.id}/cancel`);
const cancelled = await ended(waits.id);
assert.equal(cancelled.status, "failed");
assert.equal(cancelled.error.code, "cancelled");

// Deleted, with everything that was made of it.
for (const id of [video.id, remix.id, waits.id]) {
  assert.equal((await videos.delete(id)).deleted, true);
  await refusal(videos.retrieve(id), OpenAI.NotFoundError);
}
await refusal(videos.downloadContent(video.id, { variant: "thumbnail" }), OpenAI.NotFoundError);
console.log("all of it");
