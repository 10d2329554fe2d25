package llamacpptest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// The model's shape. Nothing hangs on the numbers but its size.
const (
	layers     = 2
	width      = 64 // of an embedding
	heads      = 4
	feed       = 128 // of a feed-forward layer
	contextLen = 8192
)

// Kinds of tokens, and types of values: ggml's docs/gguf.md, version 3.
const (
	tokenNormal, tokenUnknown, tokenControl, tokenByte = 1, 2, 3, 6

	ggufUint32, ggufInt32, ggufFloat32, ggufBool, ggufString, ggufArray = 4, 5, 6, 7, 8, 9

	ggufAlignment = 32
)

// template is the model's chat template: each turn's role is a token.
const template = `{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}`

// words are in the vocabulary with all their beginnings, by which a tokenizer of
// SentencePiece's kind finds them.
var words = []string{"the", "hello", "world", "agent", "model", "token", "receipt", "policy", "stone", "river", "light", "seven"}

// token is one of the vocabulary.
type token struct {
	text  string
	kind  int32
	score float32
}

// vocabulary has every byte, so that any text has tokens.
func vocabulary() []token {
	all := []token{{"<unk>", tokenUnknown, 0}, {"<s>", tokenControl, 0}, {"</s>", tokenControl, 0}}
	for _, role := range []string{"system", "user", "assistant", "tool"} {
		all = append(all, token{"<|" + role + "|>", tokenControl, 0})
	}
	for b := range 256 {
		all = append(all, token{fmt.Sprintf("<0x%02X>", b), tokenByte, 0})
	}
	seen := map[string]bool{}
	add := func(text string) {
		if !seen[text] {
			seen[text] = true
			all = append(all, token{text, tokenNormal, float32(len([]rune(text)))}) // longer ones are merged to first
		}
	}
	add("▁")
	for letter := 'a'; letter <= 'z'; letter++ {
		add(string(letter))
	}
	for _, word := range words {
		for i := range word {
			add("▁" + word[:i+1])
		}
	}
	return all
}

// writer builds a GGUF.
type writer struct {
	bytes.Buffer
}

func (w *writer) put(v any) { _ = binary.Write(w, binary.LittleEndian, v) }

func (w *writer) text(s string) {
	w.put(uint64(len(s)))
	w.WriteString(s)
}

func (w *writer) key(name string, kind uint32) {
	w.text(name)
	w.put(kind)
}

func (w *writer) pad() { w.Write(make([]byte, -w.Len()&(ggufAlignment-1))) }

// Model returns a GGUF (version 3) of LLaMA's architecture with random weights,
// always the same: 0.6 MB that llama.cpp takes for any other model. Its words
// mean nothing. It never ends an answer by itself and says only what is in its
// vocabulary of words, since the weights for the rest are zero.
func Model() []byte {
	vocabulary := vocabulary()
	var keys, infos, data writer
	count := uint64(0)
	number := func(name string, v uint32) { keys.key(name, ggufUint32); keys.put(v); count++ }
	text := func(name, v string) { keys.key(name, ggufString); keys.text(v); count++ }
	array := func(name string, kind uint32, put func(token)) {
		keys.key(name, ggufArray)
		keys.put(kind)
		keys.put(uint64(len(vocabulary)))
		for _, t := range vocabulary {
			put(t)
		}
		count++
	}
	text("general.architecture", "llama")
	text("general.name", "random weights")
	number("llama.context_length", contextLen)
	number("llama.embedding_length", width)
	number("llama.block_count", layers)
	number("llama.feed_forward_length", feed)
	number("llama.attention.head_count", heads)
	number("llama.attention.head_count_kv", heads/2)
	number("llama.rope.dimension_count", width/heads)
	keys.key("llama.attention.layer_norm_rms_epsilon", ggufFloat32)
	keys.put(float32(1e-5))
	count++
	text("tokenizer.ggml.model", "llama")
	array("tokenizer.ggml.tokens", ggufString, func(t token) { keys.text(t.text) })
	array("tokenizer.ggml.scores", ggufFloat32, func(t token) { keys.put(t.score) })
	array("tokenizer.ggml.token_type", ggufInt32, func(t token) { keys.put(t.kind) })
	number("tokenizer.ggml.unknown_token_id", 0)
	number("tokenizer.ggml.bos_token_id", 1)
	number("tokenizer.ggml.eos_token_id", 2)
	keys.key("tokenizer.ggml.add_bos_token", ggufBool)
	keys.put(false) // the template says it
	count++
	text("tokenizer.chat_template", template)

	random := rand.New(rand.NewPCG(6, 93))
	tensors := uint64(0)
	tensor := func(name string, value func(row int) float32, dims ...uint64) {
		infos.text(name)
		infos.put(uint32(len(dims)))
		size := uint64(1)
		for _, d := range dims {
			infos.put(d)
			size *= d
		}
		infos.put(uint32(0)) // 32-bit floating point
		infos.put(uint64(data.Len()))
		for i := range size {
			data.put(value(int(i / dims[0])))
		}
		data.pad()
		tensors++
	}
	weight := func(int) float32 { return float32(random.NormFloat64()) / 8 }
	one := func(int) float32 { return 1 }
	word := func(row int) float32 {
		if vocabulary[row].kind != tokenNormal {
			return 0
		}
		return float32(random.NormFloat64())
	}
	size := uint64(len(vocabulary))
	tensor("token_embd.weight", weight, width, size)
	for i := range layers {
		block := fmt.Sprintf("blk.%d.", i)
		tensor(block+"attn_norm.weight", one, width)
		tensor(block+"attn_q.weight", weight, width, width)
		tensor(block+"attn_k.weight", weight, width, width/2)
		tensor(block+"attn_v.weight", weight, width, width/2)
		tensor(block+"attn_output.weight", weight, width, width)
		tensor(block+"ffn_norm.weight", one, width)
		tensor(block+"ffn_gate.weight", weight, width, feed)
		tensor(block+"ffn_up.weight", weight, width, feed)
		tensor(block+"ffn_down.weight", weight, feed, width)
	}
	tensor("output_norm.weight", one, width)
	tensor("output.weight", word, width, size)

	var file writer
	file.WriteString("GGUF")
	file.put(uint32(3))
	file.put(tensors)
	file.put(count)
	file.Write(keys.Bytes())
	file.Write(infos.Bytes())
	file.pad()
	file.Write(data.Bytes())
	return file.Bytes()
}
