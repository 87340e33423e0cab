package show

import (
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"

	"k8s.io/client-go/util/jsonpath"

	"github.com/weft-mesh/weft/sandbox/store"
)

// customColumn is one of -o custom-columns.
type customColumn struct {
	title string
	path  *jsonpath.JSONPath
}

// parseColumns reads kubectl's "NAME:.metadata.name,IP:.status.podIP".
func parseColumns(spec string) ([]customColumn, error) {
	var out []customColumn
	for _, part := range strings.Split(spec, ",") {
		title, path, ok := strings.Cut(part, ":")
		if !ok || title == "" || path == "" {
			return nil, fmt.Errorf("-o custom-columns=%s: write TITLE:PATH,..., for example NAME:.metadata.name,IP:.status.podIP", spec)
		}
		p, err := parsePath(path)
		if err != nil {
			return nil, fmt.Errorf("-o custom-columns=%s: %w", part, err)
		}
		out = append(out, customColumn{title, p})
	}
	return out, nil
}

// parsePath takes ".a.b", "a.b" and "{.a.b}" for the same, as kubectl does.
func parsePath(path string) (*jsonpath.JSONPath, error) {
	if !strings.HasPrefix(path, "{") {
		path = "{." + strings.TrimPrefix(path, ".") + "}"
	}
	p := jsonpath.New("path").AllowMissingKeys(true)
	return p, p.Parse(path)
}

func printColumns(w io.Writer, columns []customColumn, objects []store.Object, noHeaders bool) error {
	var rows [][]string
	if !noHeaders {
		var titles []string
		for _, c := range columns {
			titles = append(titles, c.title)
		}
		rows = append(rows, titles)
	}
	for _, o := range objects {
		m, err := plain(o)
		if err != nil {
			return err
		}
		var row []string
		for _, c := range columns {
			cell, err := cellAt(c.path, m)
			if err != nil {
				return err
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	width := make([]int, len(columns))
	for _, r := range rows {
		for i, cell := range r {
			width[i] = max(width[i], len(cell))
		}
	}
	for _, r := range rows {
		for i, cell := range r[:len(r)-1] {
			fmt.Fprintf(w, "%-*s   ", width[i], cell)
		}
		fmt.Fprintln(w, r[len(r)-1])
	}
	return nil
}

// cellAt is what stands at a path, several values with commas between them; "<none>" where there is nothing.
func cellAt(p *jsonpath.JSONPath, object map[string]any) (string, error) {
	results, err := p.FindResults(object)
	if err != nil {
		return "", err
	}
	var cells []string
	for _, list := range results {
		for _, v := range list {
			cells = append(cells, fmt.Sprint(v.Interface()))
		}
	}
	if len(cells) == 0 {
		return "<none>", nil
	}
	return strings.Join(cells, ","), nil
}

// SortBy orders objects by what stands at a path (kubectl's --sort-by), numbers as numbers; those that have nothing
// there come first.
func SortBy(objects []store.Object, path string) error {
	p, err := parsePath(path)
	if err != nil {
		return fmt.Errorf("--sort-by=%s: %w", path, err)
	}
	cells := map[store.Object]string{}
	found := false
	for _, o := range objects {
		m, err := plain(o)
		if err != nil {
			return err
		}
		cell, err := cellAt(p, m)
		if err != nil {
			return fmt.Errorf("--sort-by=%s: %w", path, err)
		}
		found = found || cell != "<none>"
		cells[o] = cell
	}
	if !found && len(objects) > 0 {
		return fmt.Errorf("--sort-by=%s: none of the objects has anything there", path)
	}
	sort.SliceStable(objects, func(i, j int) bool {
		a, b := cells[objects[i]], cells[objects[j]]
		if (a == "<none>") != (b == "<none>") {
			return a == "<none>"
		}
		x, errX := strconv.ParseFloat(a, 64)
		y, errY := strconv.ParseFloat(b, 64)
		if errX == nil && errY == nil {
			return x < y
		}
		return a < b
	})
	return nil
}
