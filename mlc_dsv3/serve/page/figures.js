// What is told under an answer: speed, tokens, drafts and reuse, from the usage chunk that ends a stream.

const whole = new Intl.NumberFormat("en");
const percent = (part, all) => `${Math.round((100 * part) / all)} %`;
const seconds = (value) => (value < 0.1 ? `${Math.round(1000 * value)} ms` : `${value < 10 ? value.toFixed(1) : value.toFixed(0)} s`);

// [{text, title}], nothing for what the server does not tell.
export function figuresOf(message) {
  const { usage, timings } = message;
  if (!usage) return [];
  const figures = [];
  if (timings?.tokens_per_second > 0) {
    const speed = timings.tokens_per_second;
    figures.push({ text: `${speed < 100 ? speed.toFixed(1) : whole.format(Math.round(speed))} tok/s`, title: "Speed of this answer's decoding" });
  }
  figures.push({
    text: `${whole.format(usage.completion_tokens)} ${usage.completion_tokens === 1 ? "token" : "tokens"}${message.seconds ? ` in ${seconds(message.seconds)}` : ""}`,
    title: timings ? `Prompt read in ${seconds(timings.prefill_seconds)}, answer decoded in ${seconds(timings.decode_seconds)}` : "Tokens of the answer",
  });
  if (timings?.drafted > 0) {
    figures.push({
      text: `${percent(timings.accepted, timings.drafted)} of drafts accepted`,
      title: `${whole.format(timings.accepted)} of ${whole.format(timings.drafted)} drafted tokens were what the model chose`,
    });
  }
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  figures.push({
    text: cached > 0 ? `${whole.format(cached)} of ${whole.format(usage.prompt_tokens)} prompt tokens reused` : `${whole.format(usage.prompt_tokens)} prompt tokens`,
    title: "Tokens of the prompt that the server had read before, in an earlier request",
  });
  return figures;
}
