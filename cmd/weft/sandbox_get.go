package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/sandbox"
	"github.com/weft-mesh/weft/sandbox/show"
	"github.com/weft-mesh/weft/sandbox/store"
)

type getFlags struct {
	all        bool
	output     string
	selector   string
	watch      bool
	watchOnly  bool
	showLabels bool
	noHeaders  bool
	ignore     bool
	sortBy     string
}

func newSandboxGet(f *sandboxFlags) *cobra.Command {
	g := &getFlags{}
	cmd := &cobra.Command{
		Use:   "get TYPE[,TYPE] [NAME...] | TYPE/NAME...",
		Short: "Show objects",
		Example: `  weft sandbox get pods -A -o wide
  weft sandbox get vs,dr
  weft sandbox get pod web-0 -o jsonpath={.status.podIP}`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: f.completeTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			return serverError(f.get(cmd, g, args))
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&g.all, "all-namespaces", "A", false, "objects of all namespaces")
	fl.StringVarP(&g.output, "output", "o", "", "wide, yaml, json, name, jsonpath=TEMPLATE or custom-columns=TITLE:PATH,...")
	fl.StringVar(&g.sortBy, "sort-by", "", "order by what stands at this path, for example .metadata.creationTimestamp")
	fl.StringVarP(&g.selector, "selector", "l", "", "label selector")
	fl.BoolVarP(&g.watch, "watch", "w", false, "show, then show each change")
	fl.BoolVar(&g.watchOnly, "watch-only", false, "show only changes")
	fl.BoolVar(&g.showLabels, "show-labels", false, "a column with the labels")
	fl.BoolVar(&g.noHeaders, "no-headers", false, "no line with column titles")
	fl.BoolVar(&g.ignore, "ignore-not-found", false, "what does not exist is no error")
	must(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"wide", "yaml", "json", "name", "jsonpath=", "custom-columns="}, cobra.ShellCompDirectiveNoSpace)))
	return cmd
}

func (f *sandboxFlags) get(cmd *cobra.Command, g *getFlags, args []string) error {
	format, err := show.ParseFormat(g.output)
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
	ns := f.ns()
	if g.all {
		ns = ""
	}
	if g.watch || g.watchOnly {
		if len(ts) != 1 {
			return errors.New("-w watches one type, or one object")
		}
		return f.watch(cmd, c, g, format, ts[0], ns)
	}
	var everything []store.Object
	byKind := map[*store.Kind][]store.Object{}
	var order []*store.Kind
	var missing []error
	for _, t := range ts {
		if g.all && t.name != "" {
			return errors.New("an object cannot be named together with -A")
		}
		objects, err := c.Get(cmd.Context(), sandbox.Query{Kind: t.kind, Namespace: ns, Name: t.name, Selector: g.selector})
		if errors.Is(err, sandbox.ErrNoSandbox) {
			return err
		}
		if err != nil {
			if g.ignore {
				continue
			}
			missing = append(missing, serverError(err))
			continue
		}
		if _, seen := byKind[t.kind]; !seen {
			order = append(order, t.kind)
		}
		byKind[t.kind] = append(byKind[t.kind], objects...)
		everything = append(everything, objects...)
	}
	out := cmd.OutOrStdout()
	if !format.IsTable() {
		if len(missing) > 0 {
			return errors.Join(missing...)
		}
		if g.sortBy != "" {
			if err := show.SortBy(everything, g.sortBy); err != nil {
				return err
			}
		}
		return format.Print(out, everything, len(ts) == 1 && ts[0].name != "", g.noHeaders)
	}
	first := true
	for _, k := range order {
		objects := byKind[k]
		if len(objects) == 0 {
			continue
		}
		if !first {
			fmt.Fprintln(out)
		}
		first = false
		show.SortEvents(objects)
		if g.sortBy != "" {
			if err := show.SortBy(objects, g.sortBy); err != nil {
				return err
			}
		}
		o := show.Options{Wide: format.Wide(), Namespace: g.all && k.Namespaced, Prefix: len(order) > 1, ShowLabels: g.showLabels, NoHeaders: g.noHeaders}
		if err := show.Table(out, k, objects, o); err != nil {
			return err
		}
	}
	if first && len(missing) == 0 && !g.ignore {
		if where := ns; where != "" && ts[0].kind.Namespaced {
			fmt.Fprintf(cmd.ErrOrStderr(), "No resources found in %s namespace.\n", where)
		} else {
			fmt.Fprintln(cmd.ErrOrStderr(), "No resources found")
		}
	}
	return errors.Join(missing...)
}

func (f *sandboxFlags) watch(cmd *cobra.Command, c *sandbox.Client, g *getFlags, format show.Format, t target, ns string) error {
	out := cmd.OutOrStdout()
	o := show.Options{Wide: format.Wide(), Namespace: g.all && t.kind.Namespaced, ShowLabels: g.showLabels, NoHeaders: g.noHeaders}
	rows := show.NewRows(out, t.kind, o)
	headed := g.noHeaders
	started := time.Now()
	q := sandbox.Query{Kind: t.kind, Namespace: ns, Name: t.name, Selector: g.selector}
	if there, err := c.Get(cmd.Context(), q); err == nil {
		rows.Reserve(there)
	} else if t.name != "" || errors.Is(err, sandbox.ErrNoSandbox) {
		return err
	}
	err := c.Watch(cmd.Context(), q, func(e store.EventType, obj store.Object) error {
		if g.watchOnly && e == store.Added && obj.GetCreationTimestamp().Time.Before(started) {
			return nil
		}
		if !format.IsTable() {
			defer func() { headed = true }()
			return format.Print(out, []store.Object{obj}, true, headed)
		}
		rows.Row(obj)
		return rows.Flush()
	})
	if cmd.Context().Err() != nil {
		return nil // Ctrl-C is how a watch ends
	}
	return err
}

func newSandboxDescribe(f *sandboxFlags) *cobra.Command {
	var selector string
	var all bool
	cmd := &cobra.Command{
		Use:               "describe TYPE [NAME...] | TYPE/NAME...",
		Short:             "Show objects in detail, with their events",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: f.completeTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			ts, err := targets(args)
			if err != nil {
				return err
			}
			ns := f.ns()
			if all {
				ns = ""
			}
			n := 0
			for _, t := range ts {
				objects, err := c.Get(cmd.Context(), sandbox.Query{Kind: t.kind, Namespace: ns, Name: t.name, Selector: selector})
				if err != nil {
					return serverError(err)
				}
				for _, o := range objects {
					if n > 0 {
						fmt.Fprint(cmd.OutOrStdout(), "\n\n")
					}
					n++
					if err := describe(cmd, c, o); err != nil {
						return err
					}
				}
			}
			if n == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "No resources found")
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&selector, "selector", "l", "", "label selector")
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "objects of all namespaces")
	return cmd
}

func describe(cmd *cobra.Command, c *sandbox.Client, o store.Object) error {
	events, err := eventsOf(cmd.Context(), c, o)
	if err != nil {
		return err
	}
	var slices []*discoveryv1.EndpointSlice
	if svc, ok := o.(*corev1.Service); ok {
		k, err := kindNamed("endpointslices")
		if err != nil {
			return err
		}
		objects, err := c.Get(cmd.Context(), sandbox.Query{Kind: k, Namespace: svc.Namespace, Selector: discoveryv1.LabelServiceName + "=" + svc.Name})
		if err != nil {
			return err
		}
		for _, o := range objects {
			if s, ok := o.(*discoveryv1.EndpointSlice); ok {
				slices = append(slices, s)
			}
		}
	}
	return show.Describe(cmd.OutOrStdout(), o, events, slices, time.Now())
}

func eventsOf(ctx context.Context, c *sandbox.Client, o store.Object) ([]*corev1.Event, error) {
	k, err := kindNamed("events")
	if err != nil {
		return nil, err
	}
	ns := o.GetNamespace()
	if ns == "" {
		ns = "default"
	}
	objects, err := c.Get(ctx, sandbox.Query{Kind: k, Namespace: ns})
	if err != nil {
		return nil, err
	}
	var out []*corev1.Event
	for _, e := range objects {
		if ev, ok := e.(*corev1.Event); ok && ev.InvolvedObject.UID == o.GetUID() {
			out = append(out, ev)
		}
	}
	return out, nil
}

func newSandboxEvents(f *sandboxFlags) *cobra.Command {
	g := &getFlags{}
	cmd := &cobra.Command{
		Use:   "events",
		Short: "What happened, the latest last (get events)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serverError(f.get(cmd, g, []string{"events"}))
		},
	}
	cmd.Flags().BoolVarP(&g.all, "all-namespaces", "A", false, "events of all namespaces")
	cmd.Flags().BoolVarP(&g.watch, "watch", "w", false, "show, then show each new one")
	return cmd
}
