package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// control talks to the node's first process.
type control struct{ http http.Client }

func (l layout) control() *control {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", l.path("init.sock"))
	}
	return &control{http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 10 * time.Second}}
}

func (c *control) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://node"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the node's first process: %w", err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s", method, path, strings.TrimSpace(string(b)))
	}
	return b, err
}

func (c *control) start(ctx context.Context, p Program) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodPut, "/programs/"+p.Name, b)
	return err
}

func (c *control) signal(ctx context.Context, name string, s syscall.Signal) error {
	_, err := c.do(ctx, http.MethodPost, fmt.Sprintf("/programs/%s/%d", name, int(s)), nil)
	return err
}

func (c *control) programs(ctx context.Context) (map[string]*State, error) {
	b, err := c.do(ctx, http.MethodGet, "/programs", nil)
	if err != nil {
		return nil, err
	}
	var all map[string]*State
	return all, json.Unmarshal(b, &all)
}

// Programs lists what runs, or ran, in the cluster of a directory.
func Programs(ctx context.Context, dir string) (map[string]*State, error) {
	return layout{dir}.control().programs(ctx)
}

// Stop ends a component with a signal (SIGTERM, or SIGKILL for a crash) and returns when it has ended.
func Stop(ctx context.Context, dir, name string, s syscall.Signal) error {
	c := layout{dir}.control()
	if err := c.signal(ctx, name, s); err != nil {
		return err
	}
	return poll(ctx, 50*time.Millisecond, func() (bool, error) {
		all, err := c.programs(ctx)
		return err == nil && !all[name].Running, err
	})
}

// Pause freezes a component: its connections stay open and nobody answers. Start continues it.
func Pause(ctx context.Context, dir, name string) error {
	return layout{dir}.control().signal(ctx, name, syscall.SIGSTOP)
}

// Start starts a stopped component as it was started before, or continues a paused one.
func Start(ctx context.Context, dir, name string) error {
	c := layout{dir}.control()
	all, err := c.programs(ctx)
	if err != nil {
		return err
	}
	p := all[name]
	switch {
	case p == nil:
		return fmt.Errorf("no component %s; there are %s", name, strings.Join(names(all), ", "))
	case p.Running:
		return c.signal(ctx, name, syscall.SIGCONT)
	default:
		return c.start(ctx, p.Program)
	}
}

// poll calls f until it says true or fails, or until ctx ends.
func poll(ctx context.Context, every time.Duration, f func() (bool, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		done, err := f()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
