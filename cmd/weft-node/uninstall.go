package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

func uninstallCommand(o *options) *cobra.Command {
	stay := false
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take back what weft-node did to this node's network configuration, and remove the plugin",
		Long: `uninstall undoes exactly what is written down in --state-dir: the entry goes before the binary that it names, a converted configuration
comes back under its old name, and files that became somebody else's stay. A weft-node that is still running does not install again.

Run it when the mesh is removed from a node, never as a preStop hook: a DaemonSet also stops its pods when it upgrades them. Pods
that are redirected stay so until they end.

With --stay it is what the DaemonSet runs while the mesh is uninstalled: it also removes the node's taint ` + taintKey + ` and its annotation
` + gateAnnotation + `, tries again until
everything is undone, and serves /readyz: 503 with the reason until then, 200 afterwards, until it gets SIGTERM. Every flag of the agent is
accepted, so "uninstall --stay" is put before the arguments that are there.`,
		Example: `  weft-node uninstall
  weft-node uninstall --cni-bin-dir /usr/lib/cni
  weft-node uninstall --stay --node-name worker-1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !stay {
				return o.installation().Uninstall()
			}
			log, err := o.logs.Logger(os.Stderr)
			if err != nil {
				return err
			}
			return uninstallAndStay(cmd.Context(), *o, log)
		},
	}
	cmd.Flags().BoolVar(&stay, "stay", false, "also remove the node's taint, keep trying, and serve /readyz until SIGTERM")
	return cmd
}

// uninstallAndStay undoes until nothing is left to undo, and says on /readyz how far it is. It returns when ctx ends.
func uninstallAndStay(ctx context.Context, o options, log *slog.Logger) error {
	tell := teller{node: o.node, log: log}
	var taint *nodeTaint
	var gate *announcement
	if !o.withoutAPI {
		api, err := o.api()
		if err != nil {
			return err
		}
		var stop func()
		tell, stop = newTeller(api, o.node, log)
		defer stop()
		gate = &announcement{api: api, node: o.node, log: log}
		if o.withTaint {
			taint = &nodeTaint{api: api, node: o.node, log: log}
		}
	}
	var problem atomic.Pointer[string]
	text := "not undone yet"
	problem.Store(&text)
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if p := problem.Load(); p != nil {
			http.Error(w, *p, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok: weft-cni is uninstalled from this node")
	})
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return serve(ctx, o.monitoring, mux) })
	all.Go(func() error {
		for {
			err := undoAll(ctx, o, taint, gate)
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				problem.Store(nil)
				tell.uninstalled(nil)
				return nil
			}
			if text := err.Error(); text != *problem.Load() {
				problem.Store(&text)
				tell.uninstalled(err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Second):
			}
		}
	})
	return all.Wait()
}

// undoAll leaves nothing that keeps pods from this node: the files first, then what the node says of itself.
func undoAll(ctx context.Context, o options, taint *nodeTaint, gate *announcement) error {
	if err := o.installation().Uninstall(); err != nil {
		return err
	}
	if gate != nil {
		if err := gate.set(ctx, ""); err != nil {
			return fmt.Errorf("remove the node's annotation %s: %w", gateAnnotation, err)
		}
	}
	if taint == nil {
		return nil
	}
	if err := taint.set(ctx, false); err != nil {
		return fmt.Errorf("remove the node's taint %s: %w", taintKey, err)
	}
	return nil
}
