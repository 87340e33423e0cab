package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/weft-mesh/weft/webhook"
)

// checkedPod is one line of check-inject.
type checkedPod struct {
	Namespace string         `json:"namespace"`
	Kind      string         `json:"kind"`
	Name      string         `json:"name"`
	Revision  string         `json:"revision"`
	Injected  bool           `json:"injected"`
	Reason    webhook.Reason `json:"reason"`
	Message   string         `json:"message"`
	Warnings  []string       `json:"warnings,omitempty"`
	Error     string         `json:"error,omitempty"` // the pod would be denied
}

// newCheckInject is `weft check-inject`: whether and why, by the code that the webhook runs.
func newCheckInject() *cobra.Command {
	var files manifests
	var output, namespace string
	var nsLabels map[string]string
	settings := injectFlags{}
	cmd := &cobra.Command{
		Use:   "check-inject -f FILE... [[KIND/]NAME...]",
		Short: "Say which pods get a proxy, and why",
		Long: `check-inject says for each pod and pod template in the files whether it would get a proxy, and which label, annotation or
field decides. The labels of a namespace come from Namespace objects in the files, else from --namespace-label.
The exit status is 1 when the webhook would deny one of them.`,
		Example: `  weft check-inject -f namespace.yaml -f app.yaml
  weft check-inject -f app.yaml --namespace-label istio-injection=enabled deployment/web`,
		RunE: func(cmd *cobra.Command, names []string) error {
			all, err := readManifests(cmd, &files)
			if err != nil {
				return err
			}
			in, config, err := settings.injector()
			if err != nil {
				return err
			}
			namespaces := map[string]map[string]string{}
			for _, m := range all {
				for name, labels := range m.Namespaces {
					namespaces[name] = labels
				}
			}
			labelsOf := func(ns string) map[string]string {
				if l, ok := namespaces[ns]; ok {
					return l
				}
				return nsLabels
			}
			var rows []checkedPod
			for _, m := range all {
				for _, w := range m.Workloads {
					if !wanted(w, names) {
						continue
					}
					ns := cmp.Or(w.Namespace, namespace)
					rows = append(rows, check(in, config, m, w, ns, labelsOf(ns), settings.options.Revision))
				}
			}
			if len(rows) == 0 && len(names) > 0 {
				return fmt.Errorf("check-inject: no %s in the files", strings.Join(names, ", "))
			}
			if len(rows) == 0 {
				return errors.New("check-inject: the files hold no pods and no pod templates")
			}
			if err := printChecks(cmd.OutOrStdout(), output, rows); err != nil {
				return err
			}
			if slices.ContainsFunc(rows, func(r checkedPod) bool { return r.Error != "" }) {
				return exitStatus(1)
			}
			return nil
		},
	}
	f := cmd.Flags()
	files.register(cmd)
	f.StringVarP(&namespace, "namespace", "n", "default", "namespace of objects that name none")
	f.StringToStringVar(&nsLabels, "namespace-label", nil, "labels of namespaces that are not in the files, as KEY=VALUE; may be repeated")
	settings.add(cmd)
	addOutput(cmd, &output, "table", "table", "json", "yaml")
	return cmd
}

// wanted: no names means all; "web" and "deployment/web" name one.
func wanted(w *webhook.Workload, names []string) bool {
	if len(names) == 0 {
		return true
	}
	for _, n := range names {
		kind, name, ok := strings.Cut(n, "/")
		if !ok {
			kind, name = w.Kind, n
		}
		if name == w.Name && strings.EqualFold(strings.TrimSuffix(kind, "s"), w.Kind) {
			return true
		}
	}
	return false
}

func check(in *webhook.Injector, config *meshconfig.MeshConfig, m *webhook.Manifest, w *webhook.Workload, ns string, labels map[string]string, revision string) checkedPod {
	d := in.Decide(w.Pod, ns, labels)
	row := checkedPod{
		Namespace: ns, Kind: w.Kind, Name: w.Name, Revision: cmp.Or(revision, "default"),
		Injected: d.Inject, Reason: d.Reason, Message: d.Message, Warnings: d.Warnings,
	}
	if !d.Inject {
		return row
	}
	warnings, err := m.Inject(in, w, ns, config)
	row.Warnings = append(row.Warnings, warnings...)
	if err != nil {
		row.Injected, row.Reason, row.Error = false, webhook.ReasonInvalidInput, err.Error()
		row.Message = "wanted, but the pod would be denied"
	}
	return row
}

func printChecks(out io.Writer, format string, rows []checkedPod) error {
	if format != "table" {
		return printData(out, format, rows)
	}
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NAMESPACE\tWORKLOAD\tREVISION\tINJECTED\tREASON")
	for _, r := range rows {
		mark := "✘"
		if r.Injected {
			mark = "✔"
		}
		fmt.Fprintf(t, "%s\t%s/%s\t%s\t%s\t%s\n", r.Namespace, strings.ToLower(r.Kind), r.Name, r.Revision, mark, r.Message)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		for _, line := range r.Warnings {
			fmt.Fprintf(out, "warning: %s/%s: %s\n", strings.ToLower(r.Kind), r.Name, line)
		}
		if r.Error != "" {
			fmt.Fprintf(out, "error: %s\n", r.Error)
		}
	}
	return nil
}
