// ratings answers how many stars each reviewer gave.
package main

import (
	"net/http"
	"strconv"

	"github.com/weft-mesh/weft/samples/bookinfo/httpd"
)

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ratings/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.Atoi(r.PathValue("id"))
		if err != nil {
			httpd.WriteJSON(w, http.StatusBadRequest, map[string]string{"error": "please provide numeric product ID"})
			return
		}
		httpd.WriteJSON(w, http.StatusOK, map[string]any{"id": id, "ratings": map[string]int{"Reviewer1": 5, "Reviewer2": 4}})
	})
	httpd.Serve("ratings", mux)
}
