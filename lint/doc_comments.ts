/**
 * The beginning of documentation, held by the linter: the thing itself, or what a function does.
 *
 * A comment that begins with "What" or "Whether" says what kind of sentence follows, and the reader has the thing only
 * at its end.
 *
 * @module
 */

const VAGUE = /^(?:wh(?:at|ether|ere|ich|en|o|ose|y)(?:ever)?|how)\b/i;

/** First word of a documentation comment that says nothing; null for a good one, and for all other comments. */
export function vagueBeginning(comment: string): string | null {
  if (!comment.startsWith("*")) return null;
  return VAGUE.exec(comment.replace(/^[*\s]+/, ""))?.[0] ?? null;
}

/** Reports documentation that begins with an interrogative. */
export const docsBeginWithThing: Deno.lint.Rule = {
  create(context) {
    return {
      Program() {
        for (const comment of context.sourceCode.getAllComments()) {
          if (comment.type !== "Block") continue;
          const word = vagueBeginning(comment.value);
          if (word === null) continue;
          context.report({
            range: comment.range,
            message: `Documentation begins with "${word}"`,
            hint:
              'Begin with a noun or a verb phrase: "Number of queues", "True if it is open", "Finds the queue"',
          });
        }
      },
    };
  },
};
