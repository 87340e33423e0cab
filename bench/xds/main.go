// Program xds measures a control plane with many proxies: what it costs to connect them, what a change costs and when the last of
// them has it. No API server and no Envoy is needed.
//
//	go run ./bench/xds                                        # all rounds; some ten minutes
//	go run ./bench/xds -rounds eager,tls -churn 5s            # less
//	go run ./bench/xds -rounds eager -servers weft -cpuprofile f.prof -profiled storm
//
// In the round "eager" it measures three servers, one after the other, with the same proxies:
//
//	weft      the real engine: mesh.Store -> envoy.World -> xds.Server, fed from memory
//	baseline  go-control-plane's snapshot cache and server, as most control planes are built,
//	          fed with the resources that weft made. It does not know virtual hosts on their own (VHDS),
//	          so they are in its route tables. One snapshot serves all proxies: the cheapest way to use it
//	floor     as many bytes over bare TCP, one goroutine a connection
//
// and prints their ratios; the other rounds measure weft alone. Each server is a process of its own, and so are the proxies, so that
// CPU time and memory are theirs alone. The proxies do what Envoy does on the wire, and look at nothing: they are to take as little as
// possible of the time that they share with the server. At the end, what was promised stands beside what was measured.
//
// Open model.go for the mesh, rounds.go for the rounds and what must come out of them, measure.go for what is measured, proxy.go for what
// a proxy does.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// size is what is measured.
type size struct {
	Services, Endpoints, Namespaces, Sidecars int
	Staying                                   int // proxies besides, which stay while all others connect again
	TLS                                       bool
	OnDemand                                  bool
	Protocol                                  string // delta or sotw
	Churn                                     time.Duration
	Quiet                                     time.Duration // nothing comes for so long: a change is over
}

// options are the rest of the flags.
type options struct {
	rounds, servers []string
	repeat, changes int
	output          string
	profile         string
	profiled        string
}

func main() {
	var s size
	var o options
	flag.IntVar(&s.Services, "services", 1000, "services of the mesh")
	flag.IntVar(&s.Endpoints, "endpoints", 5, "endpoints of each")
	flag.IntVar(&s.Namespaces, "namespaces", 10, "namespaces that they and the sidecars are spread over; each has services that no other sees")
	flag.IntVar(&s.Sidecars, "sidecars", 500, "proxies; the round scale has four times as many")
	flag.IntVar(&s.Staying, "staying", 50, "further proxies that stay while all others connect again")
	flag.DurationVar(&s.Churn, "churn", time.Minute, "how long 10 changes a second are made")
	rounds := flag.String("rounds", strings.Join(roundNames(), ","), "which of them, with commas")
	servers := flag.String("servers", "weft,baseline,floor", "which of them, with commas; weft is always there")
	flag.IntVar(&o.repeat, "repeat", 3, "how often all proxies connect to a fresh server; the median counts")
	flag.IntVar(&o.changes, "changes", 7, "how often a change of one resource is made; the median counts")
	flag.DurationVar(&s.Quiet, "quiet", 400*time.Millisecond, "a change is over when nothing has come for so long")
	flag.StringVar(&o.output, "o", "", "json: the figures as JSON")
	flag.StringVar(&o.profile, "cpuprofile", "", "write a CPU profile of weft, of the last round, to this file")
	flag.StringVar(&o.profiled, "profiled", "connect", "the work to profile: connect, "+strings.Join(works, ", "))
	role := flag.String("role", "", "internal: what this process is")
	setup := flag.String("setup", "", "internal: file")
	given := flag.String("size", "", "internal: what is measured")
	flag.Parse()
	o.rounds, o.servers = strings.Split(*rounds, ","), strings.Split(*servers, ",")
	err := error(nil)
	if *role != "" {
		err = play(*role, *given, *setup)
	} else {
		err = run(s, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "xds:", err)
		os.Exit(1)
	}
}

// play is what a child process does.
func play(role, given, setup string) error {
	var s size
	if err := json.Unmarshal([]byte(given), &s); err != nil {
		return fmt.Errorf("-size: %w", err)
	}
	switch role {
	case "weft":
		return serveWeft(s, setup)
	case "baseline":
		return serveBaseline(s, setup)
	case "floor":
		return serveFloor(setup)
	case "crowd", "staying":
		return crowd(setup, role == "staying")
	}
	return fmt.Errorf("-role %s: unknown", role)
}

func (s size) validate() error {
	if s.Namespaces < 1 || s.Services < s.Namespaces || s.Sidecars < 1 || s.Endpoints < 1 || s.Staying < 1 {
		return fmt.Errorf("-services %d -namespaces %d -endpoints %d -sidecars %d -staying %d: want at least one of each, and a service in each namespace",
			s.Services, s.Namespaces, s.Endpoints, s.Sidecars, s.Staying)
	}
	if s.Services < firstOwn+1 {
		return fmt.Errorf("-services %d: want at least %d; the first ones have roles of their own", s.Services, firstOwn+1)
	}
	return nil
}

func run(s size, o options) error {
	if err := s.validate(); err != nil {
		return err
	}
	for _, name := range o.rounds {
		if !slices.Contains(roundNames(), name) {
			return fmt.Errorf("-rounds %s: unknown round; there are %s", name, strings.Join(roundNames(), ", "))
		}
	}
	if o.profiled != "connect" && !slices.Contains(works, o.profiled) {
		return fmt.Errorf("-profiled %s: unknown work; there are connect, %s", o.profiled, strings.Join(works, ", "))
	}
	dir, err := os.MkdirTemp("", "bench-xds-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var all report
	all.describe()
	var failed error
	for _, kind := range rounds {
		if !slices.Contains(o.rounds, kind.name) {
			continue
		}
		r := &round{Name: kind.name, Size: shape(s, kind.change), Servers: map[string]*result{}}
		for _, server := range kind.servers {
			if server != "weft" && !slices.Contains(o.servers, server) {
				continue
			}
			fmt.Fprintf(os.Stderr, "%s: %s, %s\n", r.Name, server, r.Size)
			into := filepath.Join(dir, kind.name+"-"+server)
			if err := os.Mkdir(into, 0o700); err != nil {
				return err
			}
			m := &measurement{size: r.Size, server: server, dir: into, weft: r.Servers["weft"], options: o}
			got, err := m.run()
			if err != nil {
				// What was measured already is not thrown away.
				failed = fmt.Errorf("%s: %s: %w", r.Name, server, err)
				break
			}
			r.Servers[server] = got
			r.order = append(r.order, server)
		}
		if len(r.order) > 0 {
			all.Rounds = append(all.Rounds, r)
		}
		if failed != nil {
			break
		}
	}
	all.judge()
	if o.output == "json" {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return errors.Join(failed, e.Encode(all))
	}
	return errors.Join(failed, all.print(os.Stdout))
}

func (s size) String() string {
	text := fmt.Sprintf("%d proxies, %d services x %d endpoints in %d namespaces, %s", s.Sidecars, s.Services, s.Endpoints, s.Namespaces, s.Protocol)
	if s.TLS {
		text += ", TLS and tokens"
	}
	if s.OnDemand {
		text += ", on demand"
	}
	return text
}
