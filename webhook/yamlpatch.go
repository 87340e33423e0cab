package webhook

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// patchNode applies a JSON patch made by podPatch to a YAML tree, so that comments, order and style of what a person wrote
// survive. It knows the operations that podPatch writes: add, replace, remove, move.
func patchNode(root *yaml.Node, patch []byte) error {
	var ops []struct {
		Op, Path, From string
		Value          json.RawMessage
	}
	if err := json.Unmarshal(patch, &ops); err != nil {
		return err
	}
	for _, op := range ops {
		var value *yaml.Node
		var err error
		switch op.Op {
		case "move":
			value, err = takeNode(root, op.From)
		case "remove":
			_, err = takeNode(root, op.Path)
			if err == nil {
				continue
			}
		default:
			value, err = jsonNode(op.Value)
		}
		if err == nil {
			if op.Op == "add" {
				unfold(root, op.Path)
			}
			err = putNode(root, op.Path, value, op.Op == "replace")
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", op.Op, op.Path, err)
		}
	}
	return nil
}

// jsonNode parses JSON (a subset of YAML) and forgets its braces and quotes.
func jsonNode(text []byte) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	n := doc.Content[0]
	blockStyle(n)
	return n, nil
}

// plainText needs no quotes in any version of YAML, unless it is one of the old words for true and false.
var plainText = regexp.MustCompile(`^[A-Za-z/-][A-Za-z0-9/._-]*([:@][A-Za-z0-9/._-]+)*$|^[0-9]+([KMGT]i|m)$`)

var oldBool = map[string]bool{"y": true, "n": true, "yes": true, "no": true, "on": true, "off": true, "true": true, "false": true, "null": true, "-": true}

func blockStyle(n *yaml.Node) {
	switch {
	case n.Kind == yaml.ScalarNode:
		switch {
		case plainText.MatchString(n.Value) && !oldBool[strings.ToLower(n.Value)]:
			n.Style &^= yaml.DoubleQuotedStyle
		case n.Style&yaml.DoubleQuotedStyle != 0 && strings.Contains(n.Value, `"`):
			n.Style = yaml.SingleQuotedStyle
		}
	case len(n.Content) > 0: // {} and [] stay
		n.Style &^= yaml.FlowStyle
	}
	for _, c := range n.Content {
		blockStyle(c)
	}
}

// parentOf walks to the node that holds the last token of a JSON pointer.
func parentOf(root *yaml.Node, pointer string) (*yaml.Node, string, error) {
	tokens := strings.Split(strings.TrimPrefix(pointer, "/"), "/")
	n := root
	for i, t := range tokens {
		t = strings.ReplaceAll(strings.ReplaceAll(t, "~1", "/"), "~0", "~")
		if i == len(tokens)-1 {
			return n, t, nil
		}
		var next *yaml.Node
		switch n.Kind {
		case yaml.MappingNode:
			next = member(n, t)
		case yaml.SequenceNode:
			if k, err := strconv.Atoi(t); err == nil && k >= 0 && k < len(n.Content) {
				next = n.Content[k]
			}
		}
		if next == nil {
			return nil, "", fmt.Errorf("no %q", t)
		}
		n = next
	}
	return n, "", nil
}

// unfold writes in block style what stands in braces on the way to a place where something is added: it gets too long for
// one line.
func unfold(root *yaml.Node, pointer string) {
	n := root
	for t := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		n.Style &^= yaml.FlowStyle
		if n.Kind == yaml.SequenceNode {
			i, err := strconv.Atoi(t)
			if err != nil || i >= len(n.Content) {
				return
			}
			n = n.Content[i]
		} else if n = member(n, strings.ReplaceAll(strings.ReplaceAll(t, "~1", "/"), "~0", "~")); n == nil {
			return
		}
	}
}

func putNode(root *yaml.Node, pointer string, value *yaml.Node, replace bool) error {
	parent, key, err := parentOf(root, pointer)
	if err != nil {
		return err
	}
	switch parent.Kind {
	case yaml.MappingNode:
		if old := member(parent, key); old != nil {
			value.HeadComment, value.LineComment, value.FootComment = old.HeadComment, old.LineComment, old.FootComment
			*old = *value
			return nil
		}
		parent.Content = append(parent.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, value)
		return nil
	case yaml.SequenceNode:
		i, err := strconv.Atoi(key)
		if err != nil || i < 0 || i > len(parent.Content) || replace && i == len(parent.Content) {
			return fmt.Errorf("no index %s in a list of %d", key, len(parent.Content))
		}
		if replace {
			parent.Content[i] = value
			return nil
		}
		parent.Content = slices.Insert(parent.Content, i, value)
		return nil
	}
	return fmt.Errorf("%q is in no mapping or list", key)
}

func takeNode(root *yaml.Node, pointer string) (*yaml.Node, error) {
	parent, key, err := parentOf(root, pointer)
	if err != nil {
		return nil, err
	}
	if parent.Kind == yaml.SequenceNode {
		if i, err := strconv.Atoi(key); err == nil && i >= 0 && i < len(parent.Content) {
			n := parent.Content[i]
			parent.Content = slices.Delete(parent.Content, i, i+1)
			return n, nil
		}
		return nil, fmt.Errorf("no index %s in a list of %d", key, len(parent.Content))
	}
	for i := 0; i+1 < len(parent.Content); i += 2 {
		if parent.Content[i].Value == key {
			n := parent.Content[i+1]
			parent.Content = slices.Delete(parent.Content, i, i+2)
			return n, nil
		}
	}
	return nil, fmt.Errorf("no %q", key)
}

// mostNodes bounds what aliases may grow into.
const mostNodes = 1 << 20

var errAliases = fmt.Errorf("the aliases of the document stand for more than %d values, or for themselves", mostNodes)

// expandAliases replaces *aliases by copies of what they stand for: a change in one place must not show in another.
func expandAliases(n *yaml.Node, left *int) error {
	if n.Kind == yaml.AliasNode {
		*n = *n.Alias // which is no alias
		n.Content = slices.Clone(n.Content)
	}
	if *left--; *left < 0 {
		return errAliases
	}
	n.Anchor = ""
	for i, c := range n.Content {
		// Below an alias every node is reached twice; each place gets its own.
		shallow := *c
		shallow.Content = slices.Clone(c.Content)
		n.Content[i] = &shallow
		if err := expandAliases(&shallow, left); err != nil {
			return err
		}
	}
	if n.Kind == yaml.MappingNode {
		mergeKeys(n)
	}
	return nil
}

// mergeKeys resolves "<<": the mapping's own fields win, then the first of the merged ones.
func mergeKeys(n *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].ShortTag() != "!!merge" {
			continue
		}
		from := []*yaml.Node{n.Content[i+1]}
		if from[0].Kind == yaml.SequenceNode {
			from = from[0].Content
		}
		n.Content = slices.Delete(n.Content, i, i+2)
		i -= 2
		for _, f := range from {
			for k := 0; k+1 < len(f.Content); k += 2 {
				if member(n, f.Content[k].Value) == nil {
					n.Content = append(n.Content, f.Content[k], f.Content[k+1])
				}
			}
		}
	}
}
