package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/deploy/install"
)

// newUninstall is `weft uninstall`.
func newUninstall() *cobra.Command {
	var cluster clusterFlags
	var operator operatorFlags
	var yes, purge, dryRun bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take the mesh out of a cluster",
		Long: `uninstall removes one control plane (--revision), or everything (--purge). It first shows what goes, and which pods would be
left behind: they keep running with the configuration they have, and their certificates end within a day.

The node agents undo what they did to each node's network configuration before they go. What all revisions share goes with the last
one. Your mesh objects (VirtualServices and so on) stay, unless you say --purge.`,
		Example: `  weft uninstall                    # the only control plane
  weft uninstall --revision 1-20    # one of several
  weft uninstall --purge            # everything, definitions and your mesh objects too`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			revision, namespace := operator.revision, cluster.namespace()
			if len(operator.files)+len(operator.sets) > 0 {
				plan, err := operator.plan(cmd)
				if err != nil {
					return err
				}
				revision, namespace = plan.Revision, plan.Namespace
			}
			to, err := cluster.connect()
			if err != nil {
				return err
			}
			removal, err := to.PlanRemoval(cmd.Context(), namespace, revision, purge)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			showRemoval(out, removal)
			if dryRun {
				return nil
			}
			if !yes {
				if err := confirm(cmd, "Proceed?"); err != nil {
					return err
				}
			}
			defer announceInterrupt(cmd)()
			show := newTicks(out)
			show.done, show.failed = "removed", "not removed"
			err = to.Uninstall(cmd.Context(), removal, install.UninstallOptions{Force: operator.force, Timeout: timeout, Progress: show})
			if err != nil {
				return err
			}
			if !removal.Purge && len(removal.Stays) == 0 {
				fmt.Fprintln(out, "✔ Uninstalled. The definitions and your mesh objects stay (weft uninstall --purge removes them), and namespace "+removal.Namespace+" too")
				return nil
			}
			fmt.Fprintln(out, "✔ Uninstalled; namespace "+removal.Namespace+" stays")
			return nil
		},
	}
	operator.add(cmd, &cluster)
	cluster.add(cmd)
	f := cmd.Flags()
	f.BoolVarP(&yes, "skip-confirmation", "y", false, "do not ask")
	f.BoolVar(&purge, "purge", false, "everything: all revisions, definitions with your mesh objects, the certificate authority")
	f.BoolVar(&dryRun, "dry-run", false, "only show what would go")
	f.DurationVar(&timeout, "readiness-timeout", 2*time.Minute, "how long the nodes, and pods that end, may take")
	_ = cmd.RegisterFlagCompletionFunc("revision", cluster.revisions) // fails only when the flag is unknown or registered twice
	return cmd
}

func showRemoval(out io.Writer, r *install.Removal) {
	if len(r.Releases) > 0 {
		fmt.Fprintln(out, "This removes the Helm releases "+strings.Join(r.Releases, ", ")+".")
	}
	if len(r.Stays) > 0 {
		fmt.Fprintln(out, "The control plane of revision "+strings.Join(r.Stays, ", ")+" stays, and what it shares.")
	}
	if r.Heir != "" {
		fmt.Fprintln(out, "Mesh objects without the label istio.io/rev are then checked by revision "+r.Heir+".")
	}
	if len(r.Foreign) > 0 {
		fmt.Fprintln(out, "Another mesh's control plane ("+strings.Join(r.Foreign, ", ")+") stays, and what it shares: definitions, mesh objects, certificate authority.")
	}
	if len(r.Kinds) > 0 {
		fmt.Fprintf(out, "This removes %d definitions (CRDs) and the certificate authority.\n", len(r.Kinds))
	}
	if len(r.Objects) > 0 {
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(r.Objects)) {
			parts = append(parts, fmt.Sprintf("%d %s", r.Objects[k], k))
		}
		fmt.Fprintln(out, "YOUR OBJECTS WOULD BE DELETED: "+strings.Join(parts, ", ")+".")
	}
	if len(r.Pods) > 0 {
		n, parts := 0, []string{}
		for _, ns := range slices.Sorted(maps.Keys(r.Pods)) {
			n += r.Pods[ns]
			parts = append(parts, fmt.Sprintf("%s (%d)", ns, r.Pods[ns]))
		}
		fmt.Fprintf(out, "Pods that would be left without control plane: %d, in %s. They keep their configuration, and their certificates end within a day. Restart them without the mesh before or afterwards.\n", n, strings.Join(parts, ", "))
	}
	if len(r.Namespaces) > 0 {
		fmt.Fprintln(out, "Labels that mean nothing then are on namespace "+strings.Join(r.Namespaces, ", ")+".")
	}
}
