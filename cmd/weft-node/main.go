// weft-node is the agent of one node: it installs the CNI plugin and keeps it in the chain, answers its questions, and redirects
// pods that were made without it. See package cni/node, and docs/node.md for what it needs.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/cmd/logging"
	"github.com/weft-mesh/weft/cni/node"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "weft-node: "+err.Error())
		os.Exit(1)
	}
}

// options are the flags of weft-node.
type options struct {
	node   string
	binary string

	binDir   string
	confDir  string
	stateDir string
	ownList  string

	socket      string
	cniStateDir string
	backend     string
	excluded    []string

	runtime    string
	monitoring string

	inotifyDir string
	inotify    int

	kubeconfig string
	withoutAPI bool
	readPods   bool
	withTaint  bool
	taintAfter time.Duration

	logs logging.Flags
}

func newCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "weft-node --node-name NAME",
		Short: "The node agent of weft: keeps the CNI plugin in the chain and repairs pods that were made without it",
		Long: `weft-node runs once on each node, until it gets SIGTERM or SIGINT:

  - it installs the plugin's binary and its entry in the node's network configuration, and puts them right whenever somebody changes them;
  - it answers the plugin where the container runtime passes no pod annotations (--agent-socket, --read-pods);
  - it redirects running pods whose network namespace lacks the rules, without restarting them;
  - it answers the hook by which kubelet waits for a new pod's proxy, when that is ready, and notes on the node that it does
    (annotation ` + gateAnnotation + `);
  - it keeps the node's taint ` + taintKey + ` as the chain is, and serves /readyz and /metrics.

Ending it changes nothing on the node, so that pods created while it restarts or is upgraded are redirected. "weft-node uninstall" takes
back what it did.`,
		Example: `  weft-node --node-name worker-1 --kubeconfig /etc/kubernetes/kubelet.conf
  weft-node --without-api --cni-bin-dir /usr/lib/cni
  weft-node uninstall`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := o.logs.Logger(os.Stderr)
			if err != nil {
				return err
			}
			return run(cmd.Context(), o, log)
		},
	}
	// All flags are the subcommand's too: an installer turns a DaemonSet's arguments into an uninstallation by putting two words before them.
	f := cmd.PersistentFlags()
	f.SortFlags = false
	f.StringVar(&o.binDir, "cni-bin-dir", "/opt/cni/bin", "the container runtime's `DIR` of CNI plugins")
	f.StringVar(&o.confDir, "cni-conf-dir", "/etc/cni/net.d", "the container runtime's `DIR` of network configurations")
	f.StringVar(&o.stateDir, "state-dir", "/var/lib/weft/node", "`DIR` that remembers what was done to the node; it must survive a reboot")
	f.StringVar(&o.node, "node-name", os.Getenv("NODE_NAME"), "`NAME` of this node (default: $NODE_NAME)")
	f.StringVar(&o.binary, "cni-binary", besideUs(node.PluginType), "`FILE` with the plugin to install")
	f.StringVar(&o.ownList, "own-conflist", "", "write a list of our own under this file `NAME`, which must sort before the network's, instead of adding to the network's list")
	f.StringVar(&o.socket, "agent-socket", "/run/weft/agent.sock", "`FILE` of the socket on which the plugin asks; the same path on the node")
	f.StringVar(&o.cniStateDir, "cni-state-dir", "", "`DIR` in which the plugin keeps its state, on the node (default /run/weft/cni)")
	f.StringVar(&o.backend, "backend", "auto", "how rules are written: auto, nftables or iptables")
	f.StringSliceVar(&o.excluded, "exclude-namespaces", []string{"kube-system", "istio-system"}, "namespaces whose pods are never redirected; our own must be one of them")
	f.StringVar(&o.runtime, "runtime-endpoint", "", "`FILE` of the container runtime's CRI socket (default: the first that exists of containerd's, CRI-O's, k3s's and RKE2's)")
	f.StringVar(&o.monitoring, "monitoring-address", ":15014", "`ADDRESS` of /metrics, /readyz and /healthz")
	f.StringVar(&o.inotifyDir, "inotify-dir", "/proc/sys/fs/inotify", "`DIR` of the node's inotify settings, mounted from the host where /proc/sys is read-only")
	f.IntVar(&o.inotify, "inotify-instances", node.InotifyInstances, "raise the node's limit of inotify instances per user to this `NUMBER` (never lower it); 0 leaves it alone")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "`FILE` to reach the API server with (default: the pod's service account)")
	f.BoolVar(&o.withoutAPI, "without-api", false, "talk to no API server: no taint, no events, and the plugin's questions are not answered")
	f.BoolVar(&o.readPods, "read-pods", false, "watch this node's pods, to answer the plugin where the container runtime passes it no pod annotations (Multus, containerd before 1.5); needs list and watch on pods")
	f.BoolVar(&o.withTaint, "taint", true, "keep the node's taint "+taintKey)
	f.DurationVar(&o.taintAfter, "taint-after", 3*time.Second, "how long the chain must be broken before the node is tainted")
	o.logs.Add(f)
	cmd.AddCommand(uninstallCommand(&o))
	return cmd
}

func (o *options) installation() *node.Installation {
	return &node.Installation{
		Binary: o.binary, BinDir: o.binDir, ConfDir: o.confDir, StateDir: o.stateDir, OwnList: o.ownList,
		Plugin: node.Entry{Backend: o.backend, ExcludeNamespaces: o.excluded, AgentSocket: o.socket, CNIStateDir: o.cniStateDir},
	}
}

// besideUs is a program that comes in the same image.
func besideUs(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}
