// details answers what is known about a book.
package main

import (
	"net/http"
	"strconv"

	"github.com/weft-mesh/weft/samples/bookinfo/httpd"
)

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /details/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.Atoi(r.PathValue("id"))
		if err != nil {
			httpd.WriteJSON(w, http.StatusBadRequest, map[string]string{"error": "please provide numeric product ID"})
			return
		}
		httpd.WriteJSON(w, http.StatusOK, map[string]any{
			"id": id, "author": "William Shakespeare", "year": 1595, "type": "paperback", "pages": 200,
			"publisher": "PublisherA", "language": "English", "ISBN-10": "1234567890", "ISBN-13": "123-1234567890",
		})
	})
	httpd.Serve("details", mux)
}
