package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/deploy/install"
)

// newRevision is `weft revision`, and `weft x revision` as in istioctl.
func newRevision() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "revision",
		Aliases: []string{"rev"},
		Short:   "The control planes of a cluster, and who uses them",
		Example: "  weft revision list\n  weft revision describe 1-20",
	}
	cmd.AddCommand(newRevisionList(), newRevisionDescribe())
	onlyVerbs(cmd)
	return cmd
}

func newRevisionList() *cobra.Command {
	var cluster clusterFlags
	var output string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the control planes, Istio's too",
		Example: "  weft revision list\n  weft revision list -o json",
		Args:    cobra.NoArgs,
		RunE: cluster.with(func(cmd *cobra.Command, to *install.Cluster, _ []string) error {
			all, err := to.Revisions(cmd.Context(), cluster.istioNamespace)
			if err != nil {
				return err
			}
			return printList(cmd.OutOrStdout(), output, all, "No control plane is installed; weft install does that.", "REVISION\tTAG\tNAMESPACE\tVERSION\tREADY\tPROXIES\tPROFILE", func(r install.Revision) string {
				version := r.Version
				if r.Foreign {
					version += " (another mesh)"
				}
				return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%d\t%s", r.Revision, orNone(strings.Join(r.Tags, ",")), r.Namespace, version, r.Ready, r.Proxies, orNone(r.Profile))
			})
		}),
	}
	cluster.add(cmd)
	addOutput(cmd, &output, "table", "table", "json", "yaml")
	return cmd
}

func newRevisionDescribe() *cobra.Command {
	var cluster clusterFlags
	var output string
	cmd := &cobra.Command{
		Use:     "describe REVISION",
		Short:   "Say what belongs to a control plane: webhooks, tags, namespaces, gateways",
		Example: "  weft revision describe default",
		Args:    cobra.ExactArgs(1),
		RunE: cluster.with(func(cmd *cobra.Command, to *install.Cluster, args []string) error {
			all, err := to.Revisions(cmd.Context(), cluster.istioNamespace)
			if err != nil {
				return err
			}
			var have []string
			for _, r := range all {
				have = append(have, r.Revision)
				if r.Revision != args[0] {
					continue
				}
				if output != "text" {
					return printData(cmd.OutOrStdout(), output, r)
				}
				return describeRevision(cmd.OutOrStdout(), r)
			}
			return fmt.Errorf("there is no revision %q: there is %s", args[0], orNone(strings.Join(have, ", ")))
		}),
		ValidArgsFunction: cluster.revisions,
	}
	cluster.add(cmd)
	addOutput(cmd, &output, "text", "text", "json", "yaml")
	return cmd
}

func describeRevision(out io.Writer, r install.Revision) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"Revision", r.Revision}, {"Namespace", r.Namespace}, {"Version", r.Version}, {"Image", r.Image}, {"Pods ready", r.Ready}, {"Profile", orNone(r.Profile)},
		{"Tags", orNone(strings.Join(r.Tags, ", "))}, {"Webhooks", orNone(strings.Join(r.Webhooks, ", "))},
		{"Namespaces", orNone(strings.Join(r.Namespaces, ", "))}, {"Proxies", fmt.Sprint(r.Proxies)}, {"Gateways", orNone(strings.Join(r.Gateways, ", "))},
	} {
		fmt.Fprintf(t, "%s:\t%s\n", row[0], row[1])
	}
	if r.Foreign {
		fmt.Fprintln(t, "Note:\tthis is not weft's control plane")
	}
	return t.Flush()
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}
