// OpenAI's fine-tuning guides, step by step, with whichever `openai` package is installed beside this file.
//
// Reads OPENAI_BASE_URL, OPENAI_API_KEY and MODEL like any script, and nothing in it is Tunery's. Prints a line for every
// step. SKIP_STEPS names steps to leave out.

import assert from 'node:assert/strict';
import { createReadStream, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import OpenAI, { toFile } from 'openai';

const MODEL = process.env.MODEL;
const RUN = `node-${process.pid}`;
const ENDED = ['succeeded', 'failed', 'cancelled'];
const QUESTION = [{ role: 'user', content: 'I was charged twice in March.' }];
const TOOL = {
  type: 'function',
  function: {
    name: 'route_ticket',
    strict: true,
    parameters: {
      type: 'object',
      properties: { team: { type: 'string', enum: ['billing', 'support'] } },
      required: ['team'],
      additionalProperties: false,
    },
  },
};
const TICKET = {
  type: 'object',
  properties: { team: { enum: ['billing', 'support'] }, urgent: { type: 'boolean' } },
  required: ['team', 'urgent'],
  additionalProperties: false,
};

const client = new OpenAI();

function ask(number, billing, support) {
  const [what, right, wrong] = number % 2 === 0 ? [billing, 'billing', 'support'] : [support, 'support', 'billing'];
  const question = { role: 'user', content: `Ticket ${number}: ${what} is wrong.` };
  return { messages: [{ role: 'system', content: 'Name the team.' }, question], right, wrong };
}

const conversations = (count, billing, support) =>
  Array.from({ length: count }, (_, number) => {
    const { messages, right } = ask(number, billing, support);
    return { messages: [...messages, { role: 'assistant', content: right }] };
  });

const preferences = (count) =>
  Array.from({ length: count }, (_, number) => {
    const { messages, right, wrong } = ask(number, 'a refund', 'a page');
    return {
      input: { messages },
      preferred_output: [{ role: 'assistant', content: right }],
      non_preferred_output: [{ role: 'assistant', content: wrong }],
    };
  });

const jsonl = (rows) => rows.map((row) => JSON.stringify(row) + '\n').join('');

async function all(pages) {
  const items = [];
  for await (const item of pages) items.push(item);
  return items;
}

async function upload(file, size) {
  let uploaded = await client.files.create({ file, purpose: 'fine-tune' });
  assert.equal(uploaded.bytes, size);
  uploaded = await client.files.waitForProcessing(uploaded.id, { pollInterval: 200 });
  assert.equal(uploaded.status, 'processed', JSON.stringify(uploaded));
  assert.equal((await (await client.files.content(uploaded.id)).text()).length, size);
  return uploaded.id;
}

async function uploadRows(rows, name) {
  const text = jsonl(rows);
  return upload(await toFile(Buffer.from(text), name), text.length);
}

async function uploadFromDisk(rows, name) {
  const folder = mkdtempSync(join(tmpdir(), 'rows-'));
  const text = jsonl(rows);
  writeFileSync(join(folder, name), text);
  const id = await upload(createReadStream(join(folder, name)), text.length);
  rmSync(folder, { recursive: true });
  assert.equal((await client.files.retrieve(id)).filename, name);
  return id;
}

async function wait(id, ...statuses) {
  const deadline = Date.now() + 900_000;
  for (;;) {
    const job = await client.fineTuning.jobs.retrieve(id);
    if (statuses.includes(job.status)) return job;
    assert(!ENDED.includes(job.status), JSON.stringify(job.error));
    assert(Date.now() < deadline, JSON.stringify(job));
    await sleep(300);
  }
}

async function train() {
  const job = await client.fineTuning.jobs.create({
    model: MODEL,
    training_file: await uploadFromDisk(conversations(12, 'an invoice', 'a login'), 'tickets.jsonl'),
    validation_file: await uploadRows(conversations(2, 'a receipt', 'a password'), 'held-out.jsonl'),
    suffix: 'tickets',
    seed: 1,
    metadata: { run: RUN, kind: 'supervised' },
    method: { type: 'supervised', supervised: { hyperparameters: { n_epochs: 1, batch_size: 4 } } },
  });
  assert.equal(job.fine_tuned_model, null);
  await client.fineTuning.jobs.pause(job.id);
  await wait(job.id, 'paused');
  await client.fineTuning.jobs.resume(job.id);
  const done = await wait(job.id, ...ENDED);
  assert.equal(done.status, 'succeeded', JSON.stringify(done.error));
  assert(done.fine_tuned_model.startsWith(`ft:${MODEL}:`));
  assert(done.trained_tokens > 0);
  return done;
}

async function listEvents(job) {
  const page = await client.fineTuning.jobs.listEvents(job.id, { limit: 5 });
  assert.equal(page.data.length, 5);
  assert(page.hasNextPage());
  const events = await all(client.fineTuning.jobs.listEvents(job.id, { limit: 5 }));
  assert.deepEqual(events.slice(0, 5), page.data);
  assert.equal(new Set(events.map((event) => event.id)).size, events.length);
  assert(events.reverse()[0].message.startsWith('Created fine-tuning job'));
  assert(events.some((event) => event.type === 'metrics' && event.data.step === 1));
}

async function listCheckpoints(job) {
  const checkpoints = await all(client.fineTuning.jobs.checkpoints.list(job.id, { limit: 1 }));
  assert(checkpoints.length > 0);
  for (const checkpoint of checkpoints) {
    assert.equal(checkpoint.fine_tuning_job_id, job.id);
    assert.equal(checkpoint.metrics.step, checkpoint.step_number);
    const model = checkpoint.fine_tuned_model_checkpoint;
    assert.equal((await client.chat.completions.create({ model, messages: QUESTION, max_tokens: 2 })).model, model);
  }
}

async function readResults(job) {
  const [header, ...lines] = (await (await client.files.content(job.result_files[0])).text()).trimEnd().split('\n');
  assert.equal(header.split(',')[1], 'train_loss');
  lines.forEach((line, index) => assert.equal(Number(line.split(',')[0]), index + 1));
}

async function useModel(job) {
  const model = job.fine_tuned_model;
  const asked = { model, messages: QUESTION, max_tokens: 8, temperature: 0 };
  const answer = await client.chat.completions.create(asked);
  assert.equal(answer.model, model);
  let text = '';
  let usage;
  const stream = await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? '';
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, answer.choices[0].message.content);
  assert.equal(usage.total_tokens, answer.usage.total_tokens);
  const followed = client.chat.completions.stream(asked);
  assert.equal((await followed.finalChatCompletion()).choices[0].message.content, text);
  const called = await client.chat.completions.create({ model, messages: QUESTION, tools: [TOOL], tool_choice: 'required' });
  const [call] = called.choices[0].message.tool_calls;
  assert(['billing', 'support'].includes(JSON.parse(call.function.arguments).team));
  await client.chat.completions.create({
    model,
    messages: [...QUESTION, called.choices[0].message, { role: 'tool', tool_call_id: call.id, content: 'routed' }],
    tools: [TOOL],
    max_tokens: 4,
  });
  const formatted = await client.chat.completions.parse({
    model,
    messages: QUESTION,
    response_format: { type: 'json_schema', json_schema: { name: 'ticket', schema: TICKET, strict: true } },
    max_tokens: 200,
  });
  assert.equal(typeof JSON.parse(formatted.choices[0].message.content).urgent, 'boolean');
  assert((await all(client.models.list())).some((each) => each.id === model));
  assert.equal((await client.models.retrieve(model)).id, model);
}

async function startDpo(job, kind, epochs) {
  const started = await client.fineTuning.jobs.create({
    model: job.fine_tuned_model,
    training_file: await uploadRows(preferences(4), 'pairs.jsonl'),
    seed: 1,
    metadata: { run: RUN, kind },
    method: { type: 'dpo', dpo: { hyperparameters: { beta: 0.1, n_epochs: epochs, batch_size: 4 } } },
  });
  assert.equal(started.method.dpo.hyperparameters.beta, 0.1);
  return started;
}

async function trainByPreference(job) {
  const done = await wait((await startDpo(job, 'dpo', 1)).id, ...ENDED);
  assert.equal(done.status, 'succeeded', JSON.stringify(done.error));
  await client.models.delete(done.fine_tuned_model);
}

async function cancel(job) {
  const started = await startDpo(job, 'cancelled', 50);
  await client.fineTuning.jobs.cancel(started.id);
  assert.equal((await wait(started.id, ...ENDED)).status, 'cancelled');
  await client.files.delete(started.training_file);
}

async function listJobs() {
  const ids = (await all(client.fineTuning.jobs.list({ limit: 1 }))).map((job) => job.id);
  assert(ids.length >= 2);
  assert.equal(new Set(ids).size, ids.length);
  const kinds = (await all(client.fineTuning.jobs.list({ metadata: { run: RUN }, limit: 1 }))).map((job) => job.metadata.kind);
  assert.deepEqual([kinds[0], kinds.at(-1)], ['cancelled', 'supervised']);
  assert.equal(new Set(kinds).size, kinds.length);
  assert.deepEqual(await all(client.fineTuning.jobs.list({ metadata: { run: 'none' } })), []);
}

async function meetErrors() {
  const good = await uploadRows(conversations(2, 'a bill', 'a menu'), 'two.jsonl');
  const { BadRequestError, NotFoundError } = OpenAI;
  const refusals = [
    [() => client.fineTuning.jobs.retrieve('ftjob-none'), NotFoundError, 'fine_tune_not_found', 'fine_tune_id'],
    [() => client.files.retrieve('file-none'), NotFoundError, undefined, 'id'],
    [() => client.chat.completions.create({ model: 'ft:none', messages: QUESTION }), NotFoundError, 'model_not_found', 'model'],
    [() => client.fineTuning.jobs.create({ model: MODEL, training_file: 'file-none' }), BadRequestError, 'file_not_found', 'training_file'],
    [() => client.fineTuning.jobs.create({ model: 'gpt-none', training_file: good }), BadRequestError, 'model_not_available', 'model'],
    [
      () => client.fineTuning.jobs.create({ model: MODEL, training_file: good, suffix: 'x'.repeat(65) }),
      BadRequestError, 'invalid_value', 'suffix',
    ],
    [() => client.fineTuning.jobs.list({ limit: 0 }), BadRequestError, 'invalid_value', 'limit'],
  ];
  for (const [call, kind, code, param] of refusals) {
    const error = await call().then(() => assert.fail(param), (error) => error);
    assert(error instanceof kind, String(error));
    if (code) assert.equal(error.code, code);
    assert.equal(error.param, param);
    assert.equal(error.type, 'invalid_request_error');
  }
}

async function deleteModel(job) {
  const model = job.fine_tuned_model;
  assert.deepEqual(await client.models.delete(model), { id: model, object: 'model', deleted: true });
  const error = await client.chat.completions.create({ model, messages: QUESTION }).catch((error) => error);
  assert(error instanceof OpenAI.NotFoundError, String(error));
}

const job = await train();
console.log('train: ok');
const steps = {
  events: () => listEvents(job),
  checkpoints: () => listCheckpoints(job),
  results: () => readResults(job),
  model: () => useModel(job),
  dpo: () => trainByPreference(job),
  cancel: () => cancel(job),
  jobs: listJobs,
  errors: meetErrors,
  delete: () => deleteModel(job),
};
for (const [name, step] of Object.entries(steps)) {
  if ((process.env.SKIP_STEPS ?? '').split(',').includes(name)) continue;
  await step();
  console.log(`${name}: ok`);
}
