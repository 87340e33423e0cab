package main

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
)

// answerSize is how much a proxy says to confirm what it got.
const answerSize = 60

// wire is the process of the raw TCP server: it writes the same bytes to each connection, in one call from shared memory, and
// reads an answer.
type wire struct {
	mu  sync.Mutex
	all []chan []byte
}

func serveFloor(path string) error {
	s, err := readSetup(path)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	w := &wire{}
	go w.accept(l, make([]byte, s.Bytes))
	s.Address = l.Addr().String()
	if err := s.write(path); err != nil {
		return err
	}
	return answer(w.do)
}

func (w *wire) accept(l net.Listener, body []byte) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		next := make(chan []byte, 1)
		w.mu.Lock()
		w.all = append(w.all, next)
		w.mu.Unlock()
		go serveBare(c, body, next)
	}
}

func serveBare(c net.Conn, body []byte, next <-chan []byte) {
	defer c.Close()
	got := make([]byte, answerSize)
	for b := body; ; b = <-next {
		if _, err := c.Write(b); err != nil {
			return
		}
		if _, err := io.ReadFull(c, got); err != nil {
			return
		}
	}
}

func (w *wire) do(verb string, args []string) (any, error) {
	u, err := used()
	if err != nil {
		return nil, err
	}
	switch verb {
	case "usage":
		return u, nil
	case "tidy":
		tidy()
		return used()
	case "push":
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return nil, fmt.Errorf("push %s: %w", args[0], err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		b := make([]byte, n)
		for _, next := range w.all {
			next <- b
		}
		return u, nil
	}
	return nil, fmt.Errorf("unknown verb %q", verb)
}
