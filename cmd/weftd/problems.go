package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/weft-mesh/weft/cmd/weftd/cluster"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/mesh/kube"
)

// problem is a part of the user's configuration that could not be used.
type problem struct {
	ref  mesh.Ref
	text string // beginning with the object
}

// said is what is wrong, without the object.
func (p problem) said() string { return strings.TrimPrefix(p.text, p.ref.String()+": ") }

func (f *feed) problems() []problem {
	v := f.latest.Load()
	if v == nil {
		return nil
	}
	var out []problem
	for _, p := range v.snapshot.Problems() {
		out = append(out, problem{p.Ref, p.String()})
	}
	for _, p := range v.Problems() {
		out = append(out, problem{p.Ref, fmt.Sprintf("%s: %s: %s", p.Ref, p.Field, p.Message)})
	}
	return out
}

// complain logs each problem once, and writes it as an event of its object, until ctx ends. Problems come to light when a proxy needs what they are about, which
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
			now[p.text] = true
			if !seen[p.text] && !ended {
				continue
			}
			if !said[p.text] {
				said[p.text] = true
				f.log.Warn("configuration cannot be used as it is written", "problem", p.text)
			}
			f.events.Warn(cluster.Warning{APIVersion: kube.APIVersion(p.ref.Kind), Kind: p.ref.Kind, Namespace: p.ref.Namespace, Name: p.ref.Name,
				UID: f.store.Current().UID(p.ref), Reason: "CannotBeUsed", Message: p.said()})
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
