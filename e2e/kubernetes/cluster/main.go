// Command cluster runs real Kubernetes nodes on this machine, without Docker:
//
//	go run ./e2e/kubernetes/cluster up --name x --version 1.37.1 --network flannel-vxlan
//	/tmp/weft-x/kubectl get pods -A
//	go run ./e2e/kubernetes/cluster down --name x
//
// What it runs is built from Go modules into bin/ the first time. See packages node and programs.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/e2e/kubernetes/node"
	"github.com/weft-mesh/weft/e2e/kubernetes/programs"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "init" {
		fmt.Fprintln(os.Stderr, node.Init(os.Args[2]))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{Use: "cluster", Short: "Run real Kubernetes nodes on this machine, without Docker", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(build(), up(), down(), load(), status(), start(), stopCommand(), pause())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cluster: "+err.Error())
		os.Exit(1)
	}
}

func build() *cobra.Command {
	var versions []string
	cmd := &cobra.Command{Use: "build", Short: "Build what clusters run, into bin/, and start none", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := programs.New(cmd.OutOrStdout())
			if err != nil {
				return err
			}
			group, ctx := errgroup.WithContext(cmd.Context())
			for _, version := range versions {
				for _, network := range node.Networks {
					group.Go(func() error {
						_, err := b.Node(ctx, node.Spec{Version: version, Network: network})
						return err
					})
				}
			}
			group.Go(func() error {
				_, err := b.TestImages(ctx)
				return err
			})
			return group.Wait()
		}}
	cmd.Flags().StringSliceVar(&versions, "version", []string{"1.36.3", "1.37.1"}, "of Kubernetes")
	return cmd
}

func up() *cobra.Command {
	var spec node.Spec
	cmd := &cobra.Command{Use: "up", Short: "Build what is missing and start a cluster", Args: cobra.NoArgs,
		Example: "  cluster up --name x\n  cluster up --name y --version 1.37.1 --network flannel-vxlan --dual-stack",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := spec.Complete(); err != nil {
				return err
			}
			b, err := programs.New(cmd.OutOrStdout())
			if err != nil {
				return err
			}
			bins, err := b.Node(cmd.Context(), spec)
			if err != nil {
				return err
			}
			images, err := b.TestImages(cmd.Context())
			if err != nil {
				return err
			}
			spec.Images = append(images, spec.Images...)
			if err := node.Up(cmd.Context(), spec, bins, cmd.OutOrStdout()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "\n%s/kubectl get pods -A\n%[1]s/run bin/weft version   # in the node's network, with KUBECONFIG\n%[1]s/enter bash               # on the node: its files, processes and network\n", spec.Dir)
			return nil
		}}
	f := cmd.Flags()
	f.StringVar(&spec.Name, "name", "dev", "name of the cluster")
	f.StringVar(&spec.Dir, "dir", "", "directory for everything that it writes (default weft-NAME among the temporary files)")
	f.StringVar(&spec.Version, "version", "1.36.3", "version of Kubernetes: 1.36.3 (with containerd 1.6.20) or 1.37.1 (with containerd 2.4.2)")
	f.StringVar(&spec.Network, "network", "ptp", "pod network: ptp, flannel-host-gw, flannel-vxlan, calico or multus")
	f.StringVar(&spec.ProxyMode, "proxy-mode", "nftables", "of kube-proxy: nftables or iptables")
	f.BoolVar(&spec.DualStack, "dual-stack", false, "IPv6 beside IPv4")
	f.StringSliceVar(&spec.Images, "image", nil, "archive of an image to load, beside those for tests (may be repeated)")
	return cmd
}

// named is a command for a cluster that runs.
func named(cmd *cobra.Command, run func(ctx context.Context, name, dir string, args []string) error) *cobra.Command {
	var name, dir string
	cmd.Flags().StringVar(&name, "name", "dev", "name of the cluster")
	cmd.Flags().StringVar(&dir, "dir", "", "its directory (default weft-NAME among the temporary files)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		dir, err := node.DirOf(name, dir)
		if err != nil {
			return err
		}
		return run(cmd.Context(), name, dir, args)
	}
	return cmd
}

func down() *cobra.Command {
	var keep bool
	cmd := named(&cobra.Command{Use: "down", Short: "End a cluster and remove what it left", Args: cobra.NoArgs},
		func(ctx context.Context, name, dir string, _ []string) error {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			return node.Down(ctx, name, dir, keep)
		})
	cmd.Flags().BoolVar(&keep, "keep", false, "keep objects, credentials, images and logs for the next up")
	return cmd
}

func load() *cobra.Command {
	return named(&cobra.Command{Use: "load ARCHIVE...", Short: "Load image archives", Args: cobra.MinimumNArgs(1), Example: "  cluster load --name x bin/images/weft.tar"},
		func(ctx context.Context, _, dir string, args []string) error { return node.Load(ctx, dir, args) })
}

func status() *cobra.Command {
	var asJSON bool
	cmd := named(&cobra.Command{Use: "status", Short: "What runs on the node beside pods", Args: cobra.NoArgs},
		func(ctx context.Context, _, dir string, _ []string) error {
			all, err := node.Programs(ctx, dir)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(os.Stdout).Encode(all)
			}
			w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "PROGRAM\tPID ON THE NODE\tSTATE\tLOG")
			var rows []*node.State
			for _, p := range all {
				rows = append(rows, p)
			}
			slices.SortFunc(rows, func(a, b *node.State) int { return a.PID - b.PID })
			for _, p := range rows {
				state := "running"
				if !p.Running {
					state = p.Exit
				}
				fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", p.Name, p.PID, state, p.Log)
			}
			return w.Flush()
		})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func stopCommand() *cobra.Command {
	var kill bool
	cmd := named(&cobra.Command{Use: "stop PROGRAM", Short: "Stop a program of the node: kube-apiserver, kubelet, ...", Args: cobra.ExactArgs(1)},
		func(ctx context.Context, _, dir string, args []string) error {
			signal := syscall.SIGTERM
			if kill {
				signal = syscall.SIGKILL
			}
			return node.Stop(ctx, dir, args[0], signal)
		})
	cmd.Flags().BoolVar(&kill, "kill", false, "at once, as a crash would")
	return cmd
}

func start() *cobra.Command {
	return named(&cobra.Command{Use: "start PROGRAM", Short: "Start a stopped program again, or continue a paused one", Args: cobra.ExactArgs(1)},
		func(ctx context.Context, _, dir string, args []string) error { return node.Start(ctx, dir, args[0]) })
}

func pause() *cobra.Command {
	return named(&cobra.Command{Use: "pause PROGRAM", Short: "Freeze a program: its connections stay open, and nobody answers", Args: cobra.ExactArgs(1)},
		func(ctx context.Context, _, dir string, args []string) error { return node.Pause(ctx, dir, args[0]) })
}
