package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/e2e/kubernetes/node"
	"github.com/weft-mesh/weft/e2e/kubernetes/programs"
)

// plan is what runs on a cluster.
type plan struct {
	node.Spec
	scenarios string   // of package e2e, as in go test -run; empty means all
	nodeAgent string   // tests of package nodeagent; empty means all
	settings  []string // of weft install: --set
	discovery string   // what sidecars are told: all that they may see (eager), or what their apps use (on-demand); empty means the mesh's default
	upgrade   bool     // to another version and back, after the scenarios
}

// light says whether the cluster has work that may run beside another's: see machine.
func (p plan) light() bool { return p.scenarios == brief || p.nodeAgent != none }

// brief are the scenarios that depend on the network below: redirection in and out, mutual TLS, the gateway, all protocols.
const brief = "^(TestS01|TestS05|TestS43|TestS70|TestDualStack|TestFailClosed|TestRestricted)"

// plans are the clusters that `make e2e` runs: what networks make different on each network, and everything on two versions' worth of software, once with each way
// of discovery. Those that have the machine for themselves at the end are begun last, so that they are not up for long before.
var plans = []plan{
	{Spec: node.Spec{Name: "e2e-hostgw", Version: "1.37.1", Network: "flannel-host-gw", DualStack: true}, scenarios: brief, nodeAgent: none, upgrade: true},
	{Spec: node.Spec{Name: "e2e-calico", Version: "1.36.3", Network: "calico", ProxyMode: "iptables"}, scenarios: brief, nodeAgent: none},
	{Spec: node.Spec{Name: "e2e-multus", Version: "1.37.1", Network: "multus"}, scenarios: brief, nodeAgent: none,
		settings: []string{"values.cni.readPods=true"}}, // Multus passes no annotations on
	{Spec: node.Spec{Name: "e2e-136", Version: "1.36.3", Network: "ptp"}, discovery: "eager"},
	{Spec: node.Spec{Name: "e2e-137", Version: "1.37.1", Network: "flannel-vxlan"}, discovery: "on-demand"},
}

// none of a package's tests.
const none = "none"

type options struct {
	environment string // auto, native, kind
	only        string // name of a plan
	scenarios   string
	keep        bool
	atOnce      int
}

func main() {
	// A cluster's first process is this program again.
	if len(os.Args) == 3 && os.Args[1] == "init" {
		fmt.Fprintln(os.Stderr, node.Init(os.Args[2]))
		os.Exit(1)
	}
	var o options
	flag.StringVar(&o.environment, "on", "auto", "kind, native, or auto: kind where Docker answers")
	flag.StringVar(&o.only, "only", "", "only the cluster of this name: e2e-136, e2e-137, ...")
	flag.StringVar(&o.scenarios, "run", "", "only scenarios that match, as in go test -run; and none of the node agent's tests")
	flag.BoolVar(&o.keep, "keep", false, "leave clusters up in which something failed")
	flag.IntVar(&o.atOnce, "at-once", 1, "how many native clusters run all scenarios at a time, and half of how many run the rest: each takes 3 GB of memory, and half of two processors; more make tests wait for one another")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.main(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "\ne2e: "+err.Error())
		os.Exit(1)
	}
}

func (o options) main(ctx context.Context) error {
	began := time.Now()
	b, err := programs.New(os.Stdout)
	if err != nil {
		return err
	}
	if o.environment == "kind" || o.environment == "auto" && docker(ctx) {
		return o.onKind(ctx, b)
	}
	var chosen []plan
	for _, p := range plans {
		if o.only != "" && p.Name != o.only {
			continue
		}
		if o.scenarios != "" {
			p.scenarios, p.nodeAgent, p.upgrade = o.scenarios, none, false
		}
		if err := p.Complete(); err != nil {
			return err
		}
		chosen = append(chosen, p)
	}
	if len(chosen) == 0 {
		return fmt.Errorf("--only %s: no such cluster", o.only)
	}
	heading("programs and images")
	bins, err := build(ctx, b, chosen)
	if err != nil {
		return err
	}
	archives, err := b.Images(ctx)
	if err != nil {
		return err
	}
	next, nextImage := "", ""
	if slices.ContainsFunc(chosen, func(p plan) bool { return p.upgrade }) {
		if next, nextImage, err = b.NextMesh(ctx); err != nil {
			return err
		}
	}
	runs := make([]*run, len(chosen))
	failures := make([]error, len(chosen))
	machine := newMachine(o.atOnce)
	for i, p := range chosen {
		machine.expects(p.light())
		p.Images = archives
		if p.upgrade {
			p.Images = append(slices.Clip(archives), nextImage)
		}
		runs[i] = &run{plan: p, builder: b, keep: o.keep, next: next, out: os.Stdout}
		if len(chosen) > 1 {
			runs[i].out = &prefixed{to: os.Stdout, prefix: p.Name + ": "}
		}
	}
	var group sync.WaitGroup
	for i, r := range runs {
		var err error
		if r.slot, err = machine.enter(ctx, r.light()); err != nil {
			continue // the user has had enough, and waits for those that have begun
		}
		group.Go(func() { // one that fails ends no other
			defer r.slot.leave()
			if err := r.all(ctx, bins[i]); err != nil {
				failures[i] = fmt.Errorf("%s: %w", r.Name, err)
			}
		})
	}
	group.Wait()
	failed := ctx.Err()
	var report []string
	for i, r := range runs {
		report = append(report, r.report()...)
		failed = errors.Join(failed, failures[i])
	}
	heading("wall times")
	fmt.Println(strings.Join(report, "\n"))
	fmt.Printf("%-44s %7.0f s\n", "all", time.Since(began).Seconds())
	return failed
}

// build makes the programs of all clusters, at the same time: much of compilation waits for one package.
func build(ctx context.Context, b *programs.Builder, chosen []plan) ([]node.Bins, error) {
	bins := make([]node.Bins, len(chosen))
	group, ctx := errgroup.WithContext(ctx)
	for i, p := range chosen {
		group.Go(func() (err error) {
			bins[i], err = b.Node(ctx, p.Spec)
			return err
		})
	}
	return bins, group.Wait()
}

// docker says whether a Docker daemon answers.
func docker(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return exec.CommandContext(ctx, "docker", "info").Run() == nil
}

func heading(text string) { fmt.Printf("\n== %s\n", text) }
