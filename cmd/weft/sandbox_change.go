package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/sandbox"
	"github.com/weft-mesh/weft/sandbox/store"
)

func newSandboxLabel(f *sandboxFlags) *cobra.Command {
	return metadataVerb(f, "label", "labeled", "labels", `  weft sandbox label namespace default istio-injection=enabled
  weft sandbox label pod web-0 app=other --overwrite
  weft sandbox label pod web-0 app-`, func(o store.Object) map[string]string { return o.GetLabels() })
}

func newSandboxAnnotate(f *sandboxFlags) *cobra.Command {
	return metadataVerb(f, "annotate", "annotated", "annotations", `  weft sandbox annotate service web networking.istio.io/exportTo=.
  weft sandbox annotate service web networking.istio.io/exportTo-`, func(o store.Object) map[string]string { return o.GetAnnotations() })
}

// metadataVerb is label and annotate: KEY=VALUE sets, KEY- removes.
func metadataVerb(f *sandboxFlags, verb, done, field, example string, have func(store.Object) map[string]string) *cobra.Command {
	var overwrite, all bool
	var selector string
	cmd := &cobra.Command{
		Use:               verb + " TYPE NAME KEY=VALUE... KEY-...",
		Short:             "Set or remove " + field + " of objects",
		Example:           example,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: f.completeTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			objects, changes := splitChanges(args)
			if len(changes) == 0 {
				return fmt.Errorf("say which %s: KEY=VALUE sets one, KEY- removes it", field)
			}
			ts, err := targets(objects)
			if err != nil {
				return err
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			chosen, err := f.choose(cmd.Context(), c, ts, selector, all)
			if err != nil {
				return serverError(err)
			}
			for _, o := range chosen {
				k, _ := store.KindFor(o)
				set := map[string]any{}
				for _, change := range changes {
					key, value, isSet := strings.Cut(change, "=")
					if !isSet {
						set[strings.TrimSuffix(change, "-")] = nil
						continue
					}
					if old, there := have(o)[key]; there && old != value && !overwrite {
						return fmt.Errorf("%s %q already has a value (%s), and --overwrite is false", strings.TrimSuffix(field, "s"), key, old)
					}
					set[key] = value
				}
				patch, err := json.Marshal(map[string]any{"metadata": map[string]any{field: set}})
				if err != nil {
					return err
				}
				after, err := c.Patch(cmd.Context(), k, o.GetNamespace(), o.GetName(), types.MergePatchType, patch)
				if err != nil {
					return serverError(err)
				}
				word := done
				if after.GetResourceVersion() == o.GetResourceVersion() {
					word = "not " + done
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s/%s %s\n", k.Printed(), o.GetName(), word)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "replace existing values")
	cmd.Flags().BoolVar(&all, "all", false, "all objects of the type in the namespace")
	cmd.Flags().StringVarP(&selector, "selector", "l", "", "label selector")
	return cmd
}

// splitChanges separates "pod web-0" from "a=b c-".
func splitChanges(args []string) (objects, changes []string) {
	for i, a := range args {
		if i > 0 && (strings.Contains(a, "=") || strings.HasSuffix(a, "-")) {
			changes = append(changes, a)
			continue
		}
		objects = append(objects, a)
	}
	return objects, changes
}

func newSandboxPatch(f *sandboxFlags) *cobra.Command {
	var patch, kind string
	cmd := &cobra.Command{
		Use:               "patch TYPE NAME -p PATCH",
		Short:             "Change fields of an object",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: f.completeTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			ts, err := named(args)
			if err != nil {
				return err
			}
			t, ok := map[string]types.PatchType{"strategic": types.StrategicMergePatchType, "merge": types.MergePatchType, "json": types.JSONPatchType}[kind]
			if !ok {
				return fmt.Errorf("--type %s: use strategic, merge or json", kind)
			}
			body, err := yamlToJSON(patch)
			if err != nil {
				return fmt.Errorf("-p: %w", err)
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			if _, err := c.Patch(cmd.Context(), ts[0].kind, f.ns(), ts[0].name, t, body); err != nil {
				return serverError(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s patched\n", ts[0])
			return nil
		},
	}
	cmd.Flags().StringVarP(&patch, "patch", "p", "", "the patch, JSON or YAML")
	cmd.Flags().StringVar(&kind, "type", "strategic", "strategic, merge or json")
	must(cmd.MarkFlagRequired("patch"))
	return cmd
}

func newSandboxScale(f *sandboxFlags) *cobra.Command {
	replicas := -1
	cmd := &cobra.Command{
		Use:               "scale --replicas=N TYPE/NAME...",
		Short:             "Set how many pods a Deployment, StatefulSet or ReplicaSet has",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: f.completeTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			if replicas < 0 {
				return errors.New("--replicas=N is needed, N at least 0")
			}
			ts, err := named(args)
			if err != nil {
				return err
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			for _, t := range ts {
				switch t.kind.Plural {
				case "deployments", "statefulsets", "replicasets":
				default:
					return fmt.Errorf("a %s cannot be scaled", t.kind.Singular)
				}
				patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas)
				if _, err := c.Patch(cmd.Context(), t.kind, f.ns(), t.name, types.MergePatchType, []byte(patch)); err != nil {
					return serverError(err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s scaled\n", t)
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&replicas, "replicas", -1, "number of pods")
	return cmd
}

func newSandboxRollout(f *sandboxFlags) *cobra.Command {
	cmd := onlyVerbs(&cobra.Command{Use: "rollout", Short: "Restart workloads and follow their updates"})
	var selector string
	restart := &cobra.Command{
		Use:               "restart TYPE/NAME... | TYPE [-l SELECTOR]",
		Short:             "Replace all pods of a workload, a few at a time",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: f.completeTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			ts, err := targets(args)
			if err != nil {
				return err
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			objects, err := f.choose(cmd.Context(), c, ts, selector, true)
			if err != nil {
				return serverError(err)
			}
			patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`, time.Now().Format(time.RFC3339Nano))
			for _, o := range objects {
				k, _ := store.KindFor(o)
				switch k.Plural {
				case "deployments", "statefulsets", "daemonsets":
				default:
					return fmt.Errorf("a %s cannot be restarted", k.Singular)
				}
				if _, err := c.Patch(cmd.Context(), k, o.GetNamespace(), o.GetName(), types.MergePatchType, []byte(patch)); err != nil {
					return serverError(err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s/%s restarted\n", k.Printed(), o.GetName())
			}
			return nil
		},
	}
	restart.Flags().StringVarP(&selector, "selector", "l", "", "label selector")
	var timeout time.Duration
	var watch bool
	status := &cobra.Command{
		Use:               "status TYPE/NAME",
		Short:             "Wait until a workload's pods are all of its current template and available",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: f.completeTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			ts, err := named(args)
			if err != nil {
				return err
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			q := sandbox.Query{Kind: ts[0].kind, Namespace: f.ns(), Name: ts[0].name}
			return f.rolloutStatus(cmd, c, q, timeout, watch)
		},
	}
	status.Flags().DurationVar(&timeout, "timeout", 0, "how long to wait; 0 means forever")
	status.Flags().BoolVarP(&watch, "watch", "w", true, "wait until it is done")
	cmd.AddCommand(restart, status)
	return cmd
}
