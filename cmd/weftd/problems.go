package main

import (
	"context"
	"fmt"
	"time"
)

// problems are parts of the user's configuration that could not be used.
func (f *feed) problems() []string {
	v := f.latest.Load()
	if v == nil {
		return nil
	}
	var out []string
	for _, p := range v.snapshot.Problems() {
		out = append(out, p.String())
	}
	for _, p := range v.Problems() {
		out = append(out, fmt.Sprintf("%s: %s: %s", p.Ref, p.Field, p.Message))
	}
	return out
}

// complain logs each problem once, until ctx ends. Problems come to light when a proxy needs what they are about, which
// may be long after the change. One that is seen only once is not worth a line: a VirtualService is often there a
// moment before its DestinationRule.
func (f *feed) complain(ctx context.Context) error {
	const pause = time.Second
	tick := time.NewTicker(pause)
	defer tick.Stop()
	seen, said := map[string]bool{}, map[string]bool{}
	for {
		ended := false
		select {
		case <-ctx.Done():
			ended = true // what is wrong at the end is said without waiting
		case <-tick.C:
		}
		now := map[string]bool{}
		for _, p := range f.problems() {
			now[p] = true
			if (seen[p] || ended) && !said[p] {
				said[p] = true
				f.log.Warn("configuration cannot be used as it is written", "problem", p)
			}
		}
		for p := range said {
			if !now[p] {
				delete(said, p)
				f.log.Info("a problem of the configuration is gone", "problem", p)
			}
		}
		if ended {
			return nil
		}
		seen = now
	}
}
