package webhook

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/mesh"
)

// Manifest is a YAML (or JSON) file of Kubernetes objects, as a person wrote it. Injecting changes only the objects that hold
// pods, and of those only what injection adds: comments and the order of fields stay, other documents stay byte for byte.
type Manifest struct {
	file string
	docs []*document
	// Workloads are the objects that hold a pod, in the order of the file, those inside Lists included.
	Workloads []*Workload
	// Namespaces are the labels of the Namespace objects in the file.
	Namespaces map[string]map[string]string
}

type document struct {
	text    []byte // with its leading "---" line, if it has one
	node    *yaml.Node
	changed bool
	compact bool // lists are written as most people write them: the dash below the key
}

// Workload is one object that holds a pod or a pod template.
type Workload struct {
	APIVersion, Kind, Namespace, Name string
	Line                              int         // 1-based, in the file
	Pod                               *corev1.Pod // the pod, or one made of the template

	file string
	doc  *document
	pod  *yaml.Node // where metadata and spec are
}

// String gives "Deployment default/reviews-v1 (bookinfo.yaml:12)".
func (w *Workload) String() string {
	ns := w.Namespace
	if ns != "" {
		ns += "/"
	}
	return fmt.Sprintf("%s %s%s (%s:%d)", w.Kind, ns, w.Name, w.file, w.Line)
}

// podPaths says where the kinds that hold pods have them.
var podPaths = map[string][]string{
	"Pod":                   {},
	"Deployment":            {"spec", "template"},
	"ReplicaSet":            {"spec", "template"},
	"StatefulSet":           {"spec", "template"},
	"DaemonSet":             {"spec", "template"},
	"ReplicationController": {"spec", "template"},
	"DeploymentConfig":      {"spec", "template"},
	"Rollout":               {"spec", "template"},
	"Job":                   {"spec", "template"},
	"CronJob":               {"spec", "jobTemplate", "spec", "template"},
}

// ReadManifest splits and parses a file; file is its name in errors. A broken document is an error with file and line.
func ReadManifest(file string, text []byte) (*Manifest, error) {
	m := &Manifest{file: file, Namespaces: map[string]map[string]string{}}
	line := 1
	for _, part := range splitDocuments(text) {
		doc := &document{text: part}
		m.docs = append(m.docs, doc)
		var node, rest yaml.Node
		d := yaml.NewDecoder(bytes.NewReader(part))
		if err := d.Decode(&node); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s: %w", file, shiftLines(err, line-1))
		}
		switch err := d.Decode(&rest); {
		case err == nil:
			return nil, fmt.Errorf("%s:%d: a second document begins here without a line \"---\" before it", file, rest.Line+line-1)
		case !errors.Is(err, io.EOF):
			return nil, fmt.Errorf("%s: %w", file, shiftLines(err, line-1))
		}
		if len(node.Content) > 0 {
			doc.node = &node
			doc.compact = compactLists(&node)
			if key := repeated(&node); key != nil {
				return nil, fmt.Errorf("%s:%d: the key %q is here a second time; is a line \"---\" missing before it?", file, key.Line+line-1, key.Value)
			}
			left := mostNodes
			if err := expandAliases(&node, &left); err != nil {
				return nil, fmt.Errorf("%s:%d: %w", file, line, err)
			}
			if err := m.read(doc, node.Content[0], line-1); err != nil {
				return nil, err
			}
		}
		line += bytes.Count(part, []byte("\n"))
	}
	return m, nil
}

// repeated finds a key that a mapping has twice, which YAML forbids and its decoders pass over when nodes are wanted.
func repeated(n *yaml.Node) *yaml.Node {
	seen := map[string]bool{}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 && c.Kind == yaml.ScalarNode && c.Tag != "!!merge" {
			if seen[c.Value] {
				return c
			}
			seen[c.Value] = true
		}
		if key := repeated(c); key != nil {
			return key
		}
	}
	return nil
}

// compactLists looks at the first list in block style.
func compactLists(n *yaml.Node) bool {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if v := n.Content[i+1]; v.Kind == yaml.SequenceNode && v.Style&yaml.FlowStyle == 0 && len(v.Content) > 0 {
				return v.Column <= n.Content[i].Column
			}
		}
	}
	return slices.ContainsFunc(n.Content, compactLists)
}

// splitDocuments cuts before each line "---"; joined, the parts are the text.
func splitDocuments(text []byte) [][]byte {
	var parts [][]byte
	start := 0
	for at := 0; at < len(text); {
		end := bytes.IndexByte(text[at:], '\n')
		next := at + end + 1
		if end < 0 {
			next = len(text)
		}
		l := text[at:next]
		if at > start && bytes.HasPrefix(l, []byte("---")) && (len(l) == 3 || strings.ContainsRune(" \t\r\n", rune(l[3]))) {
			parts = append(parts, text[start:at])
			start = at
		}
		at = next
	}
	return append(parts, text[start:])
}

var yamlLine = regexp.MustCompile(`\bline (\d+)`)

// shiftLines makes a parser's line numbers count from the beginning of the file.
func shiftLines(err error, by int) error {
	if strings.Contains(err.Error(), ": did not find expected") {
		by++ // the library counts these from 0
	}
	return errors.New(yamlLine.ReplaceAllStringFunc(strings.TrimPrefix(err.Error(), "yaml: "), func(s string) string {
		n, _ := strconv.Atoi(s[len("line "):])
		return "line " + strconv.Itoa(n+by)
	}))
}

// read finds the objects of one document.
func (m *Manifest) read(doc *document, object *yaml.Node, before int) error {
	if object.Kind != yaml.MappingNode {
		return nil
	}
	kind := scalarAt(object, "kind")
	switch {
	case strings.HasSuffix(kind, "List") && at(object, "items") != nil:
		for _, item := range at(object, "items").Content {
			if err := m.read(doc, item, before); err != nil {
				return err
			}
		}
		return nil
	case kind == "Namespace":
		var ns corev1.Namespace
		if err := decode(object, &ns); err != nil {
			return fmt.Errorf("%s:%d: Namespace: %w", m.file, object.Line+before, err)
		}
		m.Namespaces[ns.Name] = ns.Labels
		return nil
	}
	path, ok := podPaths[kind]
	if !ok {
		return nil
	}
	w := &Workload{Kind: kind, APIVersion: scalarAt(object, "apiVersion"), Line: object.Line + before, file: m.file, doc: doc}
	w.Name, w.Namespace = scalarAt(object, "metadata", "name"), scalarAt(object, "metadata", "namespace")
	if w.Name == "" {
		w.Name = strings.TrimSuffix(scalarAt(object, "metadata", "generateName"), "-")
	}
	w.pod = at(object, path...)
	if w.pod == nil || w.pod.Kind != yaml.MappingNode {
		return fmt.Errorf("%s: no field %s", w, strings.Join(path, "."))
	}
	w.Pod = new(corev1.Pod)
	if err := decode(w.pod, w.Pod); err != nil {
		return fmt.Errorf("%s: %w", w, err)
	}
	m.Workloads = append(m.Workloads, w)
	return nil
}

// decode takes the way of kubectl: YAML to JSON to the Go type.
func decode(n *yaml.Node, into any) error {
	text, err := yaml.Marshal(n)
	if err != nil {
		return err
	}
	return sigsyaml.Unmarshal(text, into)
}

func at(n *yaml.Node, path ...string) *yaml.Node {
	for _, key := range path {
		n = member(n, key)
		if n == nil {
			return nil
		}
	}
	return n
}

func member(n *yaml.Node, key string) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func scalarAt(n *yaml.Node, path ...string) string {
	if n = at(n, path...); n != nil && n.Kind == yaml.ScalarNode {
		return n.Value
	}
	return ""
}

// owner is the workload itself, seen from one of its pods.
func (w *Workload) owner() owner {
	switch w.Kind {
	case "Pod", "ReplicaSet", "Job":
		// May itself belong to something: what its labels and owners say is better.
		pod := *w.Pod
		if w.Kind != "Pod" {
			controller := true
			pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: w.APIVersion, Kind: w.Kind, Name: w.Name, Controller: &controller}}
		}
		return ownerOf(&pod)
	}
	return owner{w.APIVersion, w.Kind, w.Name}
}

// Inject adds the proxy to one workload of the manifest. Warnings are for the user; the error names the workload.
func (m *Manifest) Inject(in *Injector, w *Workload, namespace string, config *meshconfig.MeshConfig) (warnings []string, err error) {
	after, warnings, err := in.injectAs(w.Pod, namespace, config, w.owner())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w, err)
	}
	if config != nil { // else nobody has said what the mesh wants
		settleDiscovery(after, mesh.DiscoveryOf(nil, config))
	}
	patch, err := podPatch(w.Pod, after)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w, err)
	}
	if patch == nil {
		return warnings, nil
	}
	if !w.doc.changed {
		if w.doc.node.Content[0].Style == yaml.FlowStyle {
			blockStyle(w.doc.node) // JSON: nobody wants the result in one line
		}
		w.doc.changed = true
	}
	if err := patchNode(w.pod, patch); err != nil {
		return nil, fmt.Errorf("%s: %w", w, err)
	}
	w.Pod = after
	return warnings, nil
}

// WriteTo writes the file: what was injected anew, everything else as it was read.
func (m *Manifest) WriteTo(w io.Writer) (int64, error) {
	var out bytes.Buffer
	for _, d := range m.docs {
		if !d.changed {
			out.Write(d.text)
			continue
		}
		if bytes.HasPrefix(d.text, []byte("---")) {
			out.WriteString("---\n")
		}
		e := yaml.NewEncoder(&out)
		e.SetIndent(2)
		if d.compact {
			e.CompactSeqIndent()
		}
		if err := e.Encode(d.node); err != nil {
			return 0, fmt.Errorf("%s: %w", m.file, err)
		}
		if err := e.Close(); err != nil {
			return 0, fmt.Errorf("%s: %w", m.file, err)
		}
	}
	return out.WriteTo(w)
}
