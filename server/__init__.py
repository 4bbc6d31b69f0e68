"""The web server: a page that searches the collection, and the JSON interface behind it.

Begin with `api`, which has the routes: `query_features` makes features of what is searched by,
`ranking` ranks the collection, `explain` says why. `page/` is the browser's.
"""
