package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kyaml "sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/sandbox"
	"github.com/weft-mesh/weft/sandbox/show"
	"github.com/weft-mesh/weft/sandbox/store"
)

func yamlToJSON(s string) ([]byte, error) { return kyaml.YAMLToJSON([]byte(s)) }

// podSelector is how a workload or a Service finds its pods; "" for a pod itself and for kinds without pods.
func podSelector(o store.Object) (string, error) {
	switch t := o.(type) {
	case *corev1.Service:
		return labelSelector(t.Spec.Selector), nil
	case *appsv1.Deployment:
		return formatSelector(t.Spec.Selector)
	case *appsv1.ReplicaSet:
		return formatSelector(t.Spec.Selector)
	case *appsv1.StatefulSet:
		return formatSelector(t.Spec.Selector)
	case *appsv1.DaemonSet:
		return formatSelector(t.Spec.Selector)
	}
	if k, ok := store.KindFor(o); ok && k.Plural == "jobs" {
		return "batch.kubernetes.io/controller-uid=" + string(o.GetUID()), nil
	}
	return "", nil
}

func formatSelector(s *metav1.LabelSelector) (string, error) {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return "", err
	}
	return sel.String(), nil
}

func labelSelector(m map[string]string) string {
	var parts []string
	for k, v := range m {
		parts = append(parts, k+"="+v)
	}
	return strings.Join(parts, ",")
}

// errMet ends a watch whose condition has come true.
var errMet = errors.New("met")

func (f *sandboxFlags) rolloutStatus(cmd *cobra.Command, c *sandbox.Client, q sandbox.Query, timeout time.Duration, watch bool) error {
	if _, err := c.Get(cmd.Context(), q); err != nil {
		return serverError(err)
	}
	ctx := cmd.Context()
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	last := ""
	err := c.Watch(ctx, q, func(e store.EventType, o store.Object) error {
		if e == store.Deleted {
			return fmt.Errorf("%s %q was deleted", q.Kind.Printed(), q.Name)
		}
		text, done, err := show.Rollout(o)
		if err != nil {
			return err
		}
		if text != last {
			fmt.Fprintln(cmd.OutOrStdout(), text)
			last = text
		}
		if done || !watch {
			return errMet
		}
		return nil
	})
	switch {
	case errors.Is(err, errMet):
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("error: timed out waiting for the condition")
	}
	return err
}

func newSandboxWait(f *sandboxFlags) *cobra.Command {
	var condition, selector string
	var all bool
	timeout := 30 * time.Second
	cmd := &cobra.Command{
		Use:   "wait [--for=condition=NAME[=VALUE]|delete|jsonpath={...}[=VALUE] TYPE/NAME... | TYPE -l SELECTOR]",
		Short: "Wait until objects are as wanted, or until everything is ready",
		Long: `Waits until the named objects are as wanted. Without arguments, waits until every workload and every pod of the
sandbox is ready.`,
		Example: `  weft sandbox wait --timeout=60s
  weft sandbox wait --for=condition=Ready pods --all --timeout=60s
  weft sandbox wait --for=condition=Available deploy/web
  weft sandbox wait --for=delete pod/web-0`,
		ValidArgsFunction: f.completeTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && !cmd.Flags().Changed("for") {
				c, err := f.client()
				if err != nil {
					return err
				}
				ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
				defer cancel()
				return serverError(c.WaitReady(ctx))
			}
			met, err := show.ParseCondition(condition)
			if err != nil {
				return err
			}
			ts, err := targets(args)
			if err != nil {
				return err
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			gone := condition == "delete"
			var objects []store.Object
			if gone {
				for _, t := range ts {
					if t.name != "" {
						if err := f.waitGone(ctx, cmd, c, t.kind, t.name); err != nil {
							return err
						}
						continue
					}
					found, err := f.choose(ctx, c, []target{t}, selector, all)
					if err != nil {
						return serverError(err)
					}
					objects = append(objects, found...)
				}
			} else if objects, err = f.choose(ctx, c, ts, selector, all); err != nil {
				return serverError(err)
			}
			if len(objects) == 0 && !gone {
				return errors.New("error: no matching resources found")
			}
			for _, o := range objects {
				k, _ := store.KindFor(o)
				if gone {
					if err := f.waitGone(ctx, cmd, c, k, o.GetName()); err != nil {
						return err
					}
					continue
				}
				err := c.Watch(ctx, sandbox.Query{Kind: k, Namespace: o.GetNamespace(), Name: o.GetName()}, func(e store.EventType, o store.Object) error {
					if e == store.Deleted {
						return fmt.Errorf("%s %q was deleted", k.Printed(), o.GetName())
					}
					ok, err := met(o)
					if err != nil {
						return err
					}
					if ok {
						return errMet
					}
					return nil
				})
				switch {
				case errors.Is(err, errMet):
					fmt.Fprintf(cmd.OutOrStdout(), "%s/%s condition met\n", k.Printed(), o.GetName())
				case errors.Is(err, context.DeadlineExceeded):
					return fmt.Errorf("error: timed out waiting for the condition on %s/%s", k.Plural, o.GetName())
				default:
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&condition, "for", "condition=Ready", "what to wait for")
	cmd.Flags().StringVarP(&selector, "selector", "l", "", "label selector")
	cmd.Flags().BoolVar(&all, "all", false, "all objects of the type in the namespace")
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait")
	return cmd
}

func (f *sandboxFlags) waitGone(ctx context.Context, cmd *cobra.Command, c *sandbox.Client, k *store.Kind, name string) error {
	if err := c.WaitGone(ctx, k, f.ns(), name); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("error: timed out waiting for the condition on %s/%s", k.Plural, name)
		}
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s/%s condition met\n", k.Printed(), name)
	return nil
}
