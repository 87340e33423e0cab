package main

import (
	"bytes"
	"io"
	"sync"
)

// writing keeps lines of clusters that run at the same time whole.
var writing sync.Mutex

// prefixed begins each line with a cluster's name. A line is written when it ends.
type prefixed struct {
	to     io.Writer
	prefix string

	mu   sync.Mutex
	rest []byte
}

func (p *prefixed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rest = append(p.rest, b...)
	end := bytes.LastIndexByte(p.rest, '\n') + 1
	var lines []byte
	for line := range bytes.Lines(p.rest[:end]) {
		if len(bytes.TrimSpace(line)) > 0 {
			lines = append(append(lines, p.prefix...), line...)
		}
	}
	p.rest = bytes.Clone(p.rest[end:])
	writing.Lock()
	defer writing.Unlock()
	if _, err := p.to.Write(lines); err != nil {
		return 0, err
	}
	return len(b), nil
}
