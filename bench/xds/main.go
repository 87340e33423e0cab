// Program xds measures a control plane with many proxies: what it costs to connect them, what a change costs and when the last of
// them has it. No API server and no Envoy is needed.
//
//	go run ./bench/xds -sidecars 500
//	go run ./bench/xds -sidecars 500 -tls -protocol sotw
//
// In one run it measures three servers, one after the other, with the same proxies:
//
//	weft      the real engine: mesh.Store -> envoy.World -> xds.Server, fed from memory
//	baseline  go-control-plane's snapshot cache and server, as most control planes are built,
//	          fed with the resources that weft made
//	floor     the same bytes over bare TCP, one goroutine a connection, no TLS
//
// and prints their ratios. Each server is a process of its own, and so are the proxies, so that CPU time and memory are theirs
// alone. CPU time is what to compare: wall times of a shared machine are worth little. The proxies are lean: they do
// what Envoy does on the wire, and look at nothing. Open model.go for the mesh, server.go for what is measured.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// size is what is measured.
type size struct {
	Services, Endpoints, Namespaces, Sidecars int
	TLS                                       bool
	Protocol                                  string // delta or sotw
	Churn                                     time.Duration
}

func main() {
	var s size
	flag.IntVar(&s.Services, "services", 1000, "services of the mesh")
	flag.IntVar(&s.Endpoints, "endpoints", 5, "endpoints of each")
	flag.IntVar(&s.Namespaces, "namespaces", 1, "namespaces that they and the sidecars are spread over")
	flag.IntVar(&s.Sidecars, "sidecars", 500, "proxies")
	flag.BoolVar(&s.TLS, "tls", false, "TLS, a token and a certificate for each proxy (weft only; the baseline has none)")
	flag.StringVar(&s.Protocol, "protocol", "delta", "delta or sotw")
	flag.DurationVar(&s.Churn, "churn", 10*time.Second, "how long 10 changes a second are made")
	only := flag.String("servers", "weft,baseline,floor", "which of them, with commas")
	output := flag.String("o", "", "json: the figures as JSON")
	profile := flag.String("cpuprofile", "", "write a CPU profile of weft to this file")
	flag.StringVar(&profiledWork, "profiled", "connect", "the work to profile: connect, "+strings.Join(works, ", "))
	role := flag.String("role", "", "internal: what this process is")
	setup := flag.String("setup", "", "internal: file")
	flag.Parse()
	if err := run(s, *role, *setup, strings.Split(*only, ","), *output, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "xds:", err)
		os.Exit(1)
	}
}

func run(s size, role, setup string, servers []string, output, profile string) error {
	if s.Protocol != "delta" && s.Protocol != "sotw" {
		return fmt.Errorf("-protocol %s: want delta or sotw", s.Protocol)
	}
	if s.Namespaces < 1 || s.Services < s.Namespaces || s.Sidecars < 1 || s.Endpoints < 1 {
		return fmt.Errorf("-services %d -namespaces %d -endpoints %d -sidecars %d: want at least one of each, and a service in each namespace",
			s.Services, s.Namespaces, s.Endpoints, s.Sidecars)
	}
	switch role {
	case "weft":
		return serveWeft(s, setup)
	case "baseline":
		return serveBaseline(s, setup)
	case "floor":
		return serveFloor(setup)
	case "crowd":
		return crowd(setup)
	}
	dir, err := os.MkdirTemp("", "bench-xds-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	results := map[string]*result{}
	var done []string
	var failed error
	for _, name := range servers {
		if name != "weft" && results["weft"] == nil {
			return fmt.Errorf("-servers %s: the others are fed with what weft makes; name it first", strings.Join(servers, ","))
		}
		fmt.Fprintf(os.Stderr, "%s: %d proxies, %d services x %d endpoints in %d namespaces, %s, tls=%v\n",
			name, s.Sidecars, s.Services, s.Endpoints, s.Namespaces, s.Protocol, s.TLS && name == "weft")
		r, err := measure(s, name, filepath.Join(dir, "setup.json"), profile)
		if err != nil {
			// What was measured already is not thrown away.
			failed = fmt.Errorf("%s: %w", name, err)
			break
		}
		results[name] = r
		done = append(done, name)
	}
	if len(done) == 0 {
		return failed
	}
	if output == "json" {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return errors.Join(e.Encode(results), failed)
	}
	print(s, done, results)
	return failed
}
