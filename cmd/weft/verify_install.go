package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/deploy/install"
)

// newVerifyInstall is `weft verify-install`.
func newVerifyInstall() *cobra.Command {
	var cluster clusterFlags
	var revision, output string
	cmd := &cobra.Command{
		Use:   "verify-install",
		Short: "Say whether the installed mesh is complete, unchanged and working",
		Long: `verify-install compares the cluster with what was installed, object by object, and tries the parts that pods depend on: what
is missing, changed by somebody or not ready; whether the webhooks trust the control plane; whether a pod would be injected (a dry run,
nothing is created); which nodes take no meshed pods, and why. Each line that is not good has its remedy.
The exit status is 1 when something is wrong; what somebody changed is a warning.`,
		Example: `  weft verify-install
  weft verify-install --revision 1-20 -o json`,
		Args: cobra.NoArgs,
		RunE: cluster.with(func(cmd *cobra.Command, to *install.Cluster, _ []string) error {
			return verify(cmd.Context(), cmd.OutOrStdout(), to, cluster.namespace(), revision, output)
		}),
	}
	cluster.add(cmd)
	cmd.Flags().StringVarP(&revision, "revision", "r", "", "`NAME` of the control plane's revision")
	addOutput(cmd, &output, "table", "table", "json", "yaml")
	_ = cmd.RegisterFlagCompletionFunc("revision", cluster.revisions) // fails only when the flag is unknown or registered twice
	return cmd
}

func verify(ctx context.Context, out io.Writer, to *install.Cluster, namespace, revision, format string) error {
	v, err := to.Verify(ctx, namespace, revision)
	if err != nil {
		return err
	}
	if format != "table" {
		if err := printData(out, format, v); err != nil {
			return err
		}
	} else {
		printFindings(out, v.Checks)
		if n := v.Problems(); n > 0 {
			fmt.Fprintf(out, "✘ %d problems in revision %s\n", n, v.Revision)
		} else {
			fmt.Fprintf(out, "✔ Revision %s is installed and working\n", v.Revision)
		}
	}
	if v.Problems() > 0 {
		return exitStatus(1)
	}
	return nil
}

var marks = map[install.Status]string{install.OK: "✔", install.Warning: "!", install.Failed: "✘"}

// printFindings prints findings, one line each and what to do below.
func printFindings(out io.Writer, checks []install.Check) {
	for _, c := range checks {
		line := marks[c.Status] + " " + c.Object
		if c.Code != "" {
			line += " [" + c.Code + "]"
		}
		if c.Message != "" {
			line += ": " + strings.ReplaceAll(c.Message, "\n", "\n    ")
		}
		fmt.Fprintln(out, line)
		if c.Remedy != "" {
			fmt.Fprintln(out, "    → "+c.Remedy)
		}
	}
}
