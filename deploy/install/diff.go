package install

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pmezard/go-difflib/difflib"
	"sigs.k8s.io/yaml"
)

// DiffText is a unified diff of two texts, empty when they are the same.
func DiffText(nameA, a, nameB, b string) (string, error) {
	return difflib.GetUnifiedDiffString(difflib.UnifiedDiff{
		A: difflib.SplitLines(a), B: difflib.SplitLines(b), FromFile: nameA, ToFile: nameB, Context: 3,
	})
}

// DiffManifests compares two manifests object by object, whatever their order: what is only in one, and what differs.
func DiffManifests(nameA, a, nameB, b string) (string, error) {
	before, err := byName(a)
	if err != nil {
		return "", fmt.Errorf("%s: %w", nameA, err)
	}
	after, err := byName(b)
	if err != nil {
		return "", fmt.Errorf("%s: %w", nameB, err)
	}
	var names []string
	for n := range before {
		names = append(names, n)
	}
	for n := range after {
		if _, both := before[n]; !both {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	var out strings.Builder
	for _, n := range names {
		text, err := DiffText(nameA+" "+n, before[n], nameB+" "+n, after[n])
		if err != nil {
			return "", err
		}
		out.WriteString(text)
	}
	return out.String(), nil
}

func byName(manifest string) (map[string]string, error) {
	objects, err := objectsOf(manifest, "")
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, o := range objects {
		text, err := yaml.Marshal(o.tree)
		if err != nil {
			return nil, err
		}
		out[o.String()] = string(text)
	}
	return out, nil
}
