// Package shopbot holds no code: it documents and tests an example of three
// commands. An ordinary AI agent (agent), which knows nothing of Creto, answers
// a shop's mail through the shop's HTTP API (shop), told what to do by a
// language model or by the stub that stands in for one (model). One of the
// mails carries an instruction to steal the customers, and nothing in these
// three programs stops it.
package shopbot
