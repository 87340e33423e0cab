package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/weft-mesh/weft/mesh/manifest"
	"github.com/weft-mesh/weft/sandbox"
	"github.com/weft-mesh/weft/sandbox/api"
	"github.com/weft-mesh/weft/sandbox/store"
)

// sandboxFlags are those that every verb of "weft sandbox" has.
type sandboxFlags struct {
	stateDir  string
	name      string
	namespace string
}

func newSandbox() *cobra.Command {
	f := &sandboxFlags{}
	cmd := onlyVerbs(&cobra.Command{
		Use:   "sandbox",
		Short: "A mesh on this machine without a cluster: pods are network namespaces",
		Long: `A sandbox runs ordinary Kubernetes manifests on this machine, without a cluster and
without containers: each pod is a network namespace, connected through the real CNI chain,
injected by the real webhook, configured by the real control plane. The verbs below behave
like kubectl's namesakes.`,
		Example: `  weft sandbox up
  weft sandbox label namespace default istio-injection=enabled
  weft sandbox apply -f samples/bookinfo
  weft sandbox get pods -w
  weft sandbox down`,
	})
	p := cmd.PersistentFlags()
	// Inside "run" and "node", these variables lead other weft commands to the same sandbox.
	stateDir := sandbox.DefaultStateDir
	if d := os.Getenv("WEFT_SANDBOX_STATE"); d != "" {
		stateDir = sandbox.Dir(d).Parent()
	}
	p.StringVar(&f.stateDir, "state-dir", stateDir, "directory that holds the sandboxes' state")
	p.StringVar(&f.name, "name", envOr("WEFT_SANDBOX", "default"), "which sandbox (default also from $WEFT_SANDBOX)")
	p.StringVarP(&f.namespace, "namespace", "n", "", "namespace of the objects")
	must(cmd.RegisterFlagCompletionFunc("name", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return sandbox.Names(f.stateDir), cobra.ShellCompDirectiveNoFileComp
	}))
	must(cmd.RegisterFlagCompletionFunc("namespace", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return f.names(cmd.Context(), "namespaces", ""), cobra.ShellCompDirectiveNoFileComp
	}))
	cmd.AddGroup(
		&cobra.Group{ID: "life", Title: "Start and end:"},
		&cobra.Group{ID: "objects", Title: "Objects, as with kubectl:"},
		&cobra.Group{ID: "pods", Title: "Pods, as with kubectl:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			cmd.AddCommand(c)
		}
	}
	add("life", newSandboxUp(f), newSandboxDown(f), newSandboxRun(f), newSandboxStatus(f), newSandboxImage(f), newSandboxNode(f))
	add("objects", newSandboxApply(f), newSandboxCreate(f), newSandboxDelete(f), newSandboxGet(f), newSandboxDescribe(f), newSandboxEvents(f), newSandboxLabel(f), newSandboxAnnotate(f),
		newSandboxPatch(f), newSandboxScale(f), newSandboxRollout(f), newSandboxWait(f), newSandboxAPIResources())
	add("pods", newSandboxLogs(f), newSandboxExec(f), newSandboxPortForward(f), newSandboxRules(f))
	cmd.AddCommand(newSandboxDaemon(), newSandboxEnter())
	return cmd
}

// must is for mistakes in this program that its first start would show.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func envOr(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

func (f *sandboxFlags) dir() (sandbox.Dir, error) { return sandbox.Open(f.stateDir, f.name) }

func (f *sandboxFlags) client() (*sandbox.Client, error) {
	d, err := f.dir()
	if err != nil {
		return nil, err
	}
	return sandbox.NewClient(d), nil
}

// ns is the namespace of one object: -n or "default".
func (f *sandboxFlags) ns() string {
	if f.namespace == "" {
		return "default"
	}
	return f.namespace
}

// serverError prints what an API server refused as kubectl does; other errors as they are.
func serverError(err error) error {
	var st apierrors.APIStatus
	if errors.As(err, &st) {
		return errors.New(api.Message(err))
	}
	return err
}

// target is one object a verb names; an empty name means all of the kind.
type target struct {
	kind *store.Kind
	name string
}

func (t target) String() string { return t.kind.Printed() + "/" + t.name }

// allKinds is what "get all" means.
var allKinds = []string{"pods", "services", "daemonsets", "deployments", "replicasets", "statefulsets", "jobs"}

// targets reads kubectl's forms: "TYPE", "TYPE,TYPE", "TYPE NAME...", "TYPE/NAME TYPE/NAME".
func targets(args []string) ([]target, error) {
	if len(args) == 0 {
		return nil, errors.New("say which type of object, for example \"pods\" or \"deploy/web\"")
	}
	if strings.Contains(args[0], "/") {
		var out []target
		for _, a := range args {
			kind, name, ok := strings.Cut(a, "/")
			if !ok || name == "" {
				return nil, fmt.Errorf("%q: after a TYPE/NAME, every argument must be one", a)
			}
			k, err := kindNamed(kind)
			if err != nil {
				return nil, err
			}
			out = append(out, target{k, name})
		}
		return out, nil
	}
	var kinds []*store.Kind
	for _, word := range strings.Split(args[0], ",") {
		if word == "all" {
			for _, w := range allKinds {
				k, err := kindNamed(w)
				if err != nil {
					return nil, err
				}
				kinds = append(kinds, k)
			}
			continue
		}
		k, err := kindNamed(word)
		if err != nil {
			return nil, err
		}
		kinds = append(kinds, k)
	}
	var out []target
	for _, k := range kinds {
		if len(args) == 1 {
			out = append(out, target{kind: k})
		}
		for _, name := range args[1:] {
			out = append(out, target{k, name})
		}
	}
	return out, nil
}

func kindNamed(word string) (*store.Kind, error) {
	k, ok := store.Resource(word)
	if !ok {
		hint := "\"weft sandbox api-resources\" lists them"
		var known []string
		for _, k := range store.Kinds {
			known = append(append(known, k.Plural, k.Singular), k.Short...)
		}
		if near := manifest.Nearest(word, known); near != "" {
			hint = fmt.Sprintf("did you mean %s?", near)
		}
		return nil, fmt.Errorf("a sandbox has no resource type %q: %s", word, hint)
	}
	return k, nil
}

// oneName is like targets for verbs that need every object named.
func named(args []string) ([]target, error) {
	ts, err := targets(args)
	if err != nil {
		return nil, err
	}
	for _, t := range ts {
		if t.name == "" {
			return nil, fmt.Errorf("say which %s: TYPE/NAME or TYPE NAME", t.kind.Singular)
		}
	}
	return ts, nil
}

// choose resolves targets to objects: by name, or all that a selector matches.
func (f *sandboxFlags) choose(ctx context.Context, c *sandbox.Client, ts []target, selector string, all bool) ([]store.Object, error) {
	var out []store.Object
	for _, t := range ts {
		if t.name == "" && selector == "" && !all {
			return nil, fmt.Errorf("name the %s, or give -l SELECTOR or --all", t.kind.Plural)
		}
		objects, err := c.Get(ctx, sandbox.Query{Kind: t.kind, Namespace: f.ns(), Name: t.name, Selector: selector})
		if err != nil {
			return nil, err
		}
		out = append(out, objects...)
	}
	return out, nil
}

// names is for shell completion: what cannot be had is not offered.
func (f *sandboxFlags) names(ctx context.Context, resource, namespace string) []string {
	k, ok := store.Resource(resource)
	c, err := f.client()
	if !ok || err != nil {
		return nil
	}
	if ctx == nil {
		ctx = context.Background()
	}
	objects, err := c.Get(ctx, sandbox.Query{Kind: k, Namespace: namespace})
	if err != nil {
		return nil
	}
	var out []string
	for _, o := range objects {
		out = append(out, o.GetName())
	}
	return out
}

// completeTargets completes "TYPE NAME" and "TYPE/NAME".
func (f *sandboxFlags) completeTargets(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	kind, _, slash := strings.Cut(word, "/")
	switch {
	case slash:
		var out []string
		for _, n := range f.names(cmd.Context(), kind, f.ns()) {
			out = append(out, kind+"/"+n)
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	case len(args) > 0 && !strings.Contains(args[0], "/"):
		return f.names(cmd.Context(), args[0], f.ns()), cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, k := range store.Kinds {
		out = append(out, k.Plural)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func (f *sandboxFlags) completePods(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	if strings.Contains(word, "/") {
		return f.completeTargets(cmd, args, word)
	}
	return f.names(cmd.Context(), "pods", f.ns()), cobra.ShellCompDirectiveNoFileComp
}

// pods resolves "POD", "pod/X", "deploy/X", "svc/X", ... to pods, ready ones first.
func (f *sandboxFlags) pods(ctx context.Context, c *sandbox.Client, word string) ([]*corev1.Pod, error) {
	podKind, err := kindNamed("pods")
	if err != nil {
		return nil, err
	}
	t := target{podKind, word}
	if strings.Contains(word, "/") {
		ts, err := targets([]string{word})
		if err != nil {
			return nil, err
		}
		t = ts[0]
	}
	objects, err := c.Get(ctx, sandbox.Query{Kind: t.kind, Namespace: f.ns(), Name: t.name})
	if err != nil {
		return nil, err
	}
	selector, err := podSelector(objects[0])
	if err != nil {
		return nil, err
	}
	if selector == "" {
		p, ok := objects[0].(*corev1.Pod)
		if !ok {
			return nil, fmt.Errorf("%s selects no pods", t)
		}
		return []*corev1.Pod{p}, nil
	}
	if objects, err = c.Get(ctx, sandbox.Query{Kind: podKind, Namespace: f.ns(), Selector: selector}); err != nil {
		return nil, err
	}
	var out []*corev1.Pod
	for _, o := range objects {
		if p, ok := o.(*corev1.Pod); ok {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no pods", t)
	}
	sort.SliceStable(out, func(i, j int) bool { return rank(out[i]) < rank(out[j]) })
	return out, nil
}

// rank orders pods by how useful they are to look into: ready, running, the rest, those that are going.
func rank(p *corev1.Pod) int {
	switch {
	case p.DeletionTimestamp != nil:
		return 3
	case podIsReady(p):
		return 0
	case p.Status.Phase == corev1.PodRunning:
		return 1
	}
	return 2
}

func podIsReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
