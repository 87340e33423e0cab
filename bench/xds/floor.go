package main

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
)

// answerSize is how much a proxy says to confirm what it got.
const answerSize = 60

// serveFloor is the process of the raw TCP server: it writes the same bytes to each connection, in one call from shared memory, and
// reads an answer.
func serveFloor(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s setup
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.Address = l.Addr().String()
	body := make([]byte, s.Bytes)
	var mu sync.Mutex
	var all []chan []byte
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			next := make(chan []byte, 1)
			mu.Lock()
			all = append(all, next)
			mu.Unlock()
			go func() {
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
			}()
		}
	}()
	if err := s.write(path); err != nil {
		return err
	}
	return answer(func(verb string, args []string) (any, error) {
		u, err := used()
		if verb == "push" {
			n, err := strconv.Atoi(args[0])
			if err != nil {
				return nil, err
			}
			mu.Lock()
			defer mu.Unlock()
			b := make([]byte, n)
			for _, next := range all {
				next <- b
			}
		}
		return u, err
	})
}
