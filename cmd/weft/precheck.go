package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/deploy/install"
)

// newPrecheck is `weft precheck`, and `weft x precheck` as in istioctl.
func newPrecheck() *cobra.Command {
	var cluster clusterFlags
	var operator operatorFlags
	var output string
	cmd := &cobra.Command{
		Use:   "precheck",
		Short: "Say whether the mesh can be installed into a cluster, or upgraded",
		Long: `precheck looks at a cluster and changes nothing: its version, your permissions, mesh kinds and control planes that are there already
(Istio's too), injectors that would fail or fight, the control plane's namespace, what the nodes can do, and networks that need a setting.
The exit status is 1 when something stands in the way; codes are istioctl's where it has one.`,
		Example: `  weft precheck
  weft x precheck -f mesh.yaml -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := operator.plan(cmd)
			if err != nil {
				return err
			}
			to, err := cluster.connect()
			if err != nil {
				return err
			}
			found, err := to.Precheck(cmd.Context(), plan)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			failed, warned := found.Count(install.Failed), found.Count(install.Warning)
			switch {
			case output != "table":
				if err := printData(out, output, found); err != nil {
					return err
				}
			case failed == 0:
				printFindings(out, found.Checks)
				fmt.Fprintf(out, "✔ No issues stand in the way on %s: weft can be installed or upgraded", found.Cluster)
				if warned > 0 {
					fmt.Fprintf(out, " (%d warnings above)", warned)
				}
				fmt.Fprintln(out, ".")
			default:
				printFindings(out, found.Checks)
				fmt.Fprintf(out, "✘ %d issues stand in the way on %s.\n", failed, found.Cluster)
			}
			if failed > 0 {
				return exitStatus(1)
			}
			return nil
		},
	}
	operator.add(cmd, &cluster)
	cluster.add(cmd)
	addOutput(cmd, &output, "table", "table", "json", "yaml")
	return cmd
}

// newExperimental is `weft x`, where istioctl has some verbs.
func newExperimental() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "x",
		Aliases: []string{"experimental", "exp"},
		Short:   "Verbs that istioctl has under \"x\"",
		Example: "  weft x precheck\n  weft x revision list",
	}
	cmd.AddCommand(newPrecheck(), newRevision())
	onlyVerbs(cmd)
	return cmd
}
